"""When a run saves: rules that every rank follows alike, since they look at what the step's all-reduce said."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from jobs.data.order.digest_chain import row_digests, step_digest, to_hex
from jobs.run.checkpoints import Best
from jobs.spec.finetune import Checkpoint
from jobs.training.loop.state import LoopState, Run

_HALF = 2**32  # a 64-bit sum travels as two halves, which float64 adds up exactly


@dataclass(frozen=True)
class Heard:
    """What the all-reduce of a step has told every rank alike."""

    loss: float  # mean over all targets of the global batch
    stop: bool  # somebody asks for an end
    save: bool  # somebody asks for a checkpoint, or it is time for one
    busy: bool  # a rank is still writing the last checkpoint
    failed: bool  # a rank could not write it
    digest: int  # of all rows that were trained on, with their places (see `jobs.data.order.digest_chain.step_digest`)
    skipped: bool = False  # the gradients were not finite, and the step changed no weight


def digest_of_rows(table: Any, first_place: int) -> int:
    """Digest of one micro-batch's rows, whose first has this place in the global batch; see `step_digest`."""
    digests = row_digests(table["sample_ids"])
    return step_digest(digests, np.arange(first_place, first_place + len(digests)))


def saying(run: Run, loss: torch.Tensor, digest: int) -> torch.Tensor:
    """This rank's share of what the all-reduce adds up; (8,) float64."""
    orders = run.gang.orders()
    minutes, checkpoints = run.job.spec.checkpoint.save_minutes, run.checkpoints
    overdue = minutes is not None and time.monotonic() - checkpoints.last_began_at > 60 * minutes
    high, low = divmod(digest % 2**64, _HALF)
    signs = [orders.stop, orders.save or (run.gang.rank == 0 and overdue), checkpoints.busy, checkpoints.failed]
    signs.append(not run.engine.was_step_applied())
    rest = torch.tensor([float(high), float(low), *map(float, signs)], dtype=torch.float64, device=loss.device)
    return torch.cat([loss.reshape(1), rest])


def heard_of(said: torch.Tensor, targets: int) -> Heard:
    loss, high, low, stop, save, busy, failed, skipped = said.tolist()
    digest = (int(high) * _HALF + int(low)) % 2**64
    return Heard(loss / targets, stop > 0, save > 0, busy > 0, failed > 0, digest, skipped > 0)


def saved_if_due(run: Run, state: LoopState, heard: Heard, last: bool) -> LoopState:
    """Save the state now, later, or not at all; a call of every rank.

    While the last checkpoint is still being written, another one is put off. The last step's, that of an end on
    request and that of a best score are not: for them, the loop waits until they are whole.
    """
    if heard.failed:
        run.checkpoints.give_up()
    every = run.job.spec.checkpoint.save_steps
    best = best_of(run.job.spec.checkpoint, state)
    if last or heard.stop or (best is not None and best.step == state.step):
        run.checkpoints.settle()
        save(run, replace(state, best=best))
        kept = run.checkpoints.settle()
        # A best score whose checkpoint could not be written must not cost the checkpoint of the one before.
        return replace(state, best=best if kept else state.best, save_due=False, kept=kept)
    due = state.save_due or heard.save or (every is not None and state.step % every == 0)
    if due and (heard.busy and not heard.failed):
        if not state.save_due:
            run.reporter.event(
                "warning",
                f"the checkpoint of step {state.step} is put off: that of step {run.checkpoints.writing_step} is "
                f"still being written ({run.checkpoints.writing_for_s:.0f} s)",
                step=state.step,
            )
        return replace(state, save_due=True)
    if due:
        save(run, state)
    return replace(state, save_due=False)


def best_of(rule: Checkpoint, state: LoopState) -> Best | None:
    """The best score so far, the state's own among them if it has just been measured. Pure."""
    metric, best = rule.best_metric, state.best
    if best is not None and (best.metric, best.greater_is_better) != (metric, rule.greater_is_best):
        best = None  # an earlier attempt went by something else
    if metric is None or state.evaluated_at != state.step or metric not in state.metrics:
        return best
    score = state.metrics[metric]
    if not math.isfinite(score):
        return best
    if best is None or (score > best.score if rule.greater_is_best else score < best.score):
        return Best(metric=metric, greater_is_better=rule.greater_is_best, step=state.step, score=score)
    return best


def save(run: Run, state: LoopState) -> None:
    """Begin a checkpoint of the state; a call of every rank."""
    fields = {
        "per_device_train_batch_size": run.batching.per_device,
        "precision": run.engine.precision,
        "loss_scaler": run.engine.loss_scaler(),
        "loss": state.loss,
        "metrics": state.metrics,
        "evaluated_at": state.evaluated_at,
        "metrics_before": state.metrics_before,
        "best": state.best,
        "chain": to_hex(state.chain),
        "data_fingerprint": run.data_fingerprint,
    }
    run.checkpoints.save(state.step, fields, run.engine.buffers)
