"""When a run saves: rules that every rank applies to the result of the step's all-reduce, so that all agree."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from jobs.data.order.digest_chain import row_digests, step_digest, to_hex
from jobs.remedies.forgetting import is_past_bound
from jobs.remedies.outliers import Outlier
from jobs.run.checkpoints import Best, better_first
from jobs.spec.evaluation import Checkpoint
from jobs.spec.finetune import Spec
from jobs.training.checkpoint.writer import GOES_ON
from jobs.training.loop.state import SAVED, LoopState, Run
from jobs.training.model.engine import peak_memory_bytes

# What follows a checkpoint that could not be written, beside `GOES_ON`.
_STOPS: Final = "a resume continues from there"
_LAST: Final = (
    "no step follows. The model is exported all the same. If that fails too, free the storage and resume the run"
)
_HALF = 2**32  # a 64-bit sum is sent as two halves, which float64 adds exactly


@dataclass(frozen=True)
class StepSignals:
    """The result of a step's all-reduce, which is the same on every rank."""

    loss: float  # mean over all targets of the global batch
    stop: bool  # a stop was requested
    save: bool  # a checkpoint was requested, or is due by time
    busy: bool  # a rank is still writing the last checkpoint
    failed: bool  # a rank failed to write it
    compare_speeds: bool  # a speed test is due (see `jobs.training.speed_watch`)
    digest: int  # of all rows that were trained on, with their places (see `jobs.data.order.digest_chain.step_digest`)
    peak_bytes: int = 0  # most memory that a rank has held before the update (see `peak_memory_bytes`)
    skipped: bool = False  # the step changed no weight
    norm: float | None = None  # of the gradient, if the step may be compared with later ones
    outlier: Outlier | None = None  # why it was skipped; None if its batch is left out after a rollback


def digest_of_rows(table: Any, first_place: int) -> int:
    """Return the digest of a micro-batch whose first row has this place in the global batch; see `step_digest`."""
    digests = row_digests(table["sample_ids"])
    return step_digest(digests, np.arange(first_place, first_place + len(digests)))


def pack_signals(run: Run, loss: torch.Tensor, digest: int) -> torch.Tensor:
    """Return this rank's summand of the step's all-reduce; (8 + ranks,) float64, the last ones the ranks' peaks."""
    requests = run.worker.requests()
    minutes, checkpoints = run.job.spec.checkpoint.save_minutes, run.checkpoints
    overdue = minutes is not None and time.monotonic() - checkpoints.last_began_at > 60 * minutes
    high, low = divmod(digest % 2**64, _HALF)
    save = requests.save or (run.worker.rank == 0 and overdue)
    signs = [requests.stop, save, checkpoints.busy, checkpoints.failed, run.speeds.is_due]
    peaks = [0] * run.worker.world_size
    peaks[run.worker.rank] = peak_memory_bytes(run.worker.device)
    numbers = [float(one) for one in (high, low, *signs, *peaks)]
    rest = torch.tensor(numbers, dtype=torch.float64, device=loss.device)
    return torch.cat([loss.reshape(1), rest])


def unpack_signals(summed: torch.Tensor, targets: int) -> StepSignals:
    """Read the sum of all ranks' summands. `targets`: in the global batch."""
    loss, high, low, *others = summed.tolist()
    digest = (int(high) * _HALF + int(low)) % 2**64
    stop, save, busy, failed, compare_speeds = (sign > 0 for sign in others[:5])
    peak = int(max(others[5:]))
    return StepSignals(loss / targets, stop, save, busy, failed, compare_speeds, digest, peak)


def save_if_due(run: Run, state: LoopState, signals: StepSignals, last: bool) -> LoopState:
    """Save the state now, later, or not at all. Every rank must call it.

    A checkpoint is put off while the previous one is being written. The checkpoints of the last step, of a requested
    stop and of a best score are not: the loop waits for the previous one, saves, and waits until this one is complete.
    """
    every = run.job.spec.checkpoint.save_steps
    best = best_score(run.job.spec, state)
    waits = last or signals.stop or (best is not None and best.step == state.step)
    follows = f"that of step {state.step} is written now" if waits else GOES_ON
    if signals.failed:
        run.checkpoints.give_up(follows)
    if waits:
        run.checkpoints.settle(follows)
        save(run, replace(state, best=best))
        kept = run.checkpoints.settle(_LAST if last else _STOPS if signals.stop else GOES_ON)
        # If the checkpoint of a best score fails, the checkpoint of the previous best must stay.
        return replace(state, best=best if kept else state.best, save_due=False, kept=kept)
    due = state.save_due or signals.save or (every is not None and state.step % every == 0)
    if due and state.history.outliers_in_a_row:  # older checkpoints stay, in case the run has to go back
        return replace(state, save_due=True)
    if due and (signals.busy and not signals.failed):
        if not state.save_due:
            run.reporter.event(
                "warning",
                f"the checkpoint of step {state.step} is put off: {run.checkpoints.under_way}",
                step=state.step,
            )
        return replace(state, save_due=True)
    if due:
        save(run, state)
    return replace(state, save_due=False)


def best_score(spec: Spec, state: LoopState) -> Best | None:
    """Return the best score so far within the bound on forgetting, including the state's own. Pure."""
    rule, before = spec.remedies.forgetting, state.metrics_before
    if state.best is not None and is_past_bound(
        rule, before, state.best.metrics
    ):  # an earlier attempt had no such bound
        state = replace(state, best=None)
    if is_past_bound(rule, before, state.metrics):
        return state.best
    return best_of(spec.checkpoint, state, spec.eval.early_stopping_threshold)


def set_aside(run: Run, state: LoopState, best: Best) -> Best:
    """Keep the checkpoint of the best score, unless the one that is kept is better. Every rank must call it.

    Returns:
        The score whose checkpoint is kept.
    """
    kept, rule = state.set_aside, run.job.spec.remedies.forgetting
    may_be_exported = kept is not None and not is_past_bound(rule, state.metrics_before, kept.metrics)
    if kept is not None and may_be_exported and kept.metric == best.metric and better_first([kept, best])[0] is kept:
        return kept
    run.checkpoints.settle()
    run.checkpoints.set_aside(best.step)
    return best


def bests(spec: Spec, state: LoopState) -> list[Best]:
    """Return the best score now and the one that is set aside, if they may be exported; the better one first. Pure."""
    found, before = [best_score(spec, state), state.set_aside], state.metrics_before
    metric = spec.checkpoint.best_metric
    return better_first(
        one
        for one in found
        if one is not None and one.metric == metric and not is_past_bound(spec.remedies.forgetting, before, one.metrics)
    )


def best_of(rule: Checkpoint, state: LoopState, threshold: float = 0.0) -> Best | None:
    """Return the best score so far, including the state's own if it was just measured. Pure.

    Args:
        threshold: by which a score must be better to count as an improvement for early stopping.
    """
    metric, best = rule.best_metric, state.best
    if best is not None and (best.metric, best.greater_is_better) != (metric, rule.greater_is_best):
        best = None  # an earlier attempt used another metric or direction
    if metric is None or state.evaluated_at != state.step or metric not in state.metrics:
        return best
    score = state.metrics[metric]
    if not math.isfinite(score):
        return best
    if best is None or (score > best.score if rule.greater_is_best else score < best.score):
        improves = best is None or abs(score - best.score) > threshold
        return Best(
            metric=metric,
            greater_is_better=rule.greater_is_best,
            step=state.step,
            score=score,
            metrics=state.metrics,
            confusion=state.confusion,
            improved_at=None if improves or best is None else best.counted_from,
        )
    return best


def save(run: Run, state: LoopState) -> None:
    """Start a checkpoint of the state. Every rank must call it."""
    fields = {
        "per_device_train_batch_size": run.batching.per_device,
        "precision": run.engine.precision,
        "loss_scaler": run.engine.loss_scaler(),
        "chain": to_hex(state.chain),
        "eval_steps": run.job.spec.eval.eval_steps,
        "data_fingerprint": run.prepared.manifest.fingerprint,
        "base_digest": run.base_digest,
        **{name: getattr(state, name) for name in SAVED},
    }
    run.checkpoints.save(state.step, fields, run.engine.buffers)
