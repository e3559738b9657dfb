"""How a run goes on from a checkpoint, and what is held against what before it may."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch.distributed as dist

from cluster.text import many
from jobs.data.order.digest_chain import chain_of, from_hex, step_digest
from jobs.errors import DataError, RunFailed, SpecError, StorageError
from jobs.run.checkpoints import Commit
from jobs.run.record import logged_loss
from jobs.training.loop.saving import Heard
from jobs.training.loop.state import LoopState, Run

# How far the first loss may be from the log's. In fp32 the number of workers changes the order of sums only.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}


def restored(run: Run) -> LoopState:
    """The newest whole checkpoint's state, loaded into the engine; a fresh state where there is none.

    A call of every rank.

    Raises:
        InputError: the checkpoint is of other data, another model or another precision.
        RunFailed: the order of rows, or the optimizer's settings, are not those of the run.
    """
    commit = run.reader.restore()
    if commit is None:
        return LoopState()
    check_precision(run, commit)
    check_data(run, commit)
    run.engine.load_loss_scaler(commit.loss_scaler)
    run.engine.check_groups(commit.optimizer_step)
    run.reporter.event(
        "phase",
        f"resumed from the checkpoint of step {commit.step}, written by {many(commit.num_workers, 'worker')}",
        phase="resumed",
        step=commit.step,
    )
    if commit.per_device_train_batch_size != run.batching.per_device:
        return state_of(commit)  # other micro-batches have other dropout masks: another loss is no sign of a fault
    return state_of(commit, expected_loss(run, commit.step + 1))


def state_of(commit: Commit, expected_loss: float | None = None) -> LoopState:
    return LoopState(
        step=commit.step,
        loss=commit.loss,
        metrics={} if commit.evaluated_at is None else commit.metrics,
        metrics_before=commit.metrics_before,
        evaluated_at=commit.evaluated_at,
        best=commit.best,
        chain=from_hex(commit.chain),
        expected_loss=expected_loss,
    )


def check_precision(run: Run, commit: Commit) -> None:
    """Raise SpecError where the run would go on in another precision, which the device may choose."""
    if commit.precision != run.engine.precision:
        raise SpecError(
            f"the run was computed in {commit.precision} so far, and would go on in {run.engine.precision} on this "
            f"device: set train.bf16: {str(commit.precision == 'bf16').lower()} in the spec of the resume, or start "
            "a new run"
        )


def check_data(run: Run, commit: Commit) -> None:
    """Recompute the hash chain from the order alone; rank 0's verdict is everybody's.

    Raises:
        DataError: the prepared data is not what the checkpoint was trained on.
        RunFailed: the order of rows is another one.
    """
    if commit.data_fingerprint != run.data_fingerprint:
        raise DataError(
            f"the data is not that of the run: it is prepared as {run.data_fingerprint}, but the checkpoint of step "
            f"{commit.step} was trained on {commit.data_fingerprint}. Bring the old files back, or start a new run"
        )
    verdict = [True]
    if run.gang.rank == 0:
        verdict[0] = chain_of(run.plan, run.row_digests, commit.step) == from_hex(commit.chain)
    dist.broadcast_object_list(verdict, src=0)
    if not verdict[0]:
        raise RunFailed(
            f"the {commit.step} steps before the checkpoint were trained on other samples, or in another order, than "
            "this data, seed and release give: going on would repeat some samples and leave out others"
        )


def expected_loss(run: Run, step: int) -> float | None:
    """The loss that an earlier attempt has logged for a step, where it got so far; rank 0 tells all."""
    told: list[Any] = [None]
    if run.gang.rank == 0:
        with contextlib.suppress(StorageError):
            told[0] = logged_loss(run.job.paths, step)
    dist.broadcast_object_list(told, src=0)
    loss: float | None = told[0]
    return loss


def check_step(run: Run, state: LoopState, heard: Heard) -> None:
    """Hold a step against the plan and, the first one after a resume, against the log; the same on all ranks.

    Raises:
        RunFailed: other rows were trained on than the plan says; or the loss is not the logged one, so something of
            the state has not come back.
    """
    rows = run.plan.rows_of_step(state.step)
    if heard.digest != step_digest(run.row_digests[rows], np.arange(len(rows))):
        raise RunFailed(f"step {state.step + 1} was trained on other rows than the order says: the reader lost its way")
    expected, tolerance = state.expected_loss, _TOLERANCE[run.engine.precision]
    if expected is not None and abs(heard.loss - expected) > tolerance * max(abs(expected), 1.0):
        raise RunFailed(
            f"step {state.step + 1} gave loss {heard.loss:.6f} after the resume, but the log of the run has "
            f"{expected:.6f}: the checkpoint did not bring back the state that was saved. To go on from the one before "
            f"it, remove {run.job.paths.checkpoint(state.step)}"
        )


def load_best(run: Run, state: LoopState) -> None:
    """Bring back the weights of the best score, if they are not those of the state; a call of every rank."""
    if state.best is None or state.best.step == state.step:
        return
    if run.reader.restore(only=state.best.step) is None:
        run.reporter.event("warning", f"the best checkpoint, of step {state.best.step}, is gone: the last is exported")
        return
    run.reporter.event("phase", f"taking the best checkpoint, of step {state.best.step}", phase="best")
