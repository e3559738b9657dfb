"""Restores a run from a checkpoint, and checks that the run is the one that was saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.errors import DataError, RunFailed, SpecError, StorageError
from cluster.text import many
from jobs.data.order.digest_chain import chain_of, extended, from_hex, step_digest, to_hex
from jobs.model_files.directory import local_model_dir
from jobs.remedies.excessive_rate import rate_after, rates_to_try
from jobs.remedies.forgetting import rate_factor
from jobs.remedies.outlier_text import rollback_report
from jobs.remedies.outliers import Rollback, after_rollback, targets_of
from jobs.run.checkpoints import Commit
from jobs.run.record import logged_loss
from jobs.training.collectives import from_rank_0
from jobs.training.loop.measuring import losses_along_first_step
from jobs.training.loop.saving import StepSignals, bests
from jobs.training.loop.state import SAVED, LoopState, Run

# Relative deviation that the first loss may have from the logged one. In fp32 only the order of sums can change.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}


def restored(run: Run) -> LoopState:
    """Load the newest complete checkpoint into the engine and return its state; without one, return a new state.

    Every rank must call it.

    Raises:
        InputError: the checkpoint belongs to other data, another model or another precision.
        RunFailed: the row order or the optimizer's settings differ from those of the run.
    """
    commit = run.reader.restore()
    if commit is None:
        return LoopState()
    state = _state_at(run, commit)
    run.reporter.event(
        "phase",
        f"resumed from the checkpoint of step {commit.step}, written by {many(commit.num_workers, 'worker')}",
        phase="resumed",
        step=commit.step,
    )
    return state


def _state_at(run: Run, commit: Commit) -> LoopState:
    """Check the checkpoint that was read into the engine, and return its state."""
    check_precision(run, commit)
    check_data(run, commit)
    check_base(run, commit)
    run.engine.load_loss_scaler(commit.loss_scaler)
    run.engine.check_groups(commit.optimizer_step)
    commit = counted_anew(commit, run.job.spec.eval.eval_steps)
    if commit.per_device_train_batch_size != run.batching.per_device:
        return state_of(commit)  # other micro-batches have other dropout masks, so the loss may differ
    return state_of(commit, expected_loss(run.with_raises(commit.replay_raises), commit.step + 1, commit.chain))


def counted_anew(commit: Commit, eval_steps: int | None) -> Commit:
    """Let early stopping count evaluations from here on if `eval_steps` has changed since the last attempt. Pure."""
    if commit.best is None or commit.eval_steps in (None, eval_steps):
        return commit
    return commit.model_copy(update={"best": commit.best.model_copy(update={"improved_at": commit.step})})


def state_of(commit: Commit, expected_loss: float | None = None) -> LoopState:
    saved: dict[str, Any] = {name: getattr(commit, name) for name in SAVED}
    if commit.evaluated_at is None:
        saved["metrics"] = {}
    return LoopState(step=commit.step, chain=from_hex(commit.chain), expected_loss=expected_loss, **saved)


def gone_back(run: Run, state: LoopState, targets: Callable[[], Iterable[int]]) -> LoopState:
    """Load an earlier state into the engine and return it. Every rank must call it.

    Later checkpoints are removed: a resume must not continue from them.

    Args:
        targets: lists the steps whose checkpoints are tried in turn; after them, the run goes back to its start.
    """
    run.checkpoints.settle()
    commits = (run.reader.restore(only=step) for step in targets())
    commit = next((commit for commit in commits if commit is not None), None)
    if commit is None:
        run.engine.restart(local_model_dir(run.job.model))
        earlier = LoopState(metrics_before=state.metrics_before)
    else:
        earlier = _state_at(run, commit)
        if commit.replay_raises != state.replay_raises:
            earlier = replace(earlier, expected_loss=None)  # the next step may have other rows
    run.checkpoints.remove_after(earlier.step)
    if earlier.best is not None and earlier.best.step not in run.reader.candidates():
        earlier = replace(earlier, best=None)  # a later state had a better score, so that its checkpoint was removed
    kept = {name: getattr(state, name) for name in ("rate_cuts", "replay_raises", "set_aside", "save_due")}
    trend = earlier.trend.model_copy(update={"found": state.trend.found})  # which is told once
    return replace(earlier, trend=trend, **kept)


def rolled_back(run: Run, state: LoopState, rollback: Rollback) -> LoopState:
    """Go back to an earlier state after outlying steps, and return it. Every rank must call it."""
    earlier = gone_back(run, state, lambda: targets_of(rollback, run.reader.candidates()))
    if rollback.cuts_rate and earlier.step == 0 and state.rate_factor == 1:
        rollback, save = with_measured_rate(run, rollback)
        earlier = replace(earlier, save_due=earlier.save_due or save)
    told = replace(rollback, rate_factor=rollback.rate_factor * rate_factor(state.rate_cuts))
    rollback_report(told, earlier.step, run.job.spec.train.learning_rate).tell(
        run.reporter.event,
        stage="rollback",
        step=rollback.until,
        number=rollback.number,
        to_step=earlier.step,
        rate_factor=rollback.rate_factor,
        barred=rollback.barred,
    )
    history = after_rollback(earlier.history, state.history, rollback, earlier.step)
    return replace(earlier, history=history)


def with_measured_rate(run: Run, rollback: Rollback) -> tuple[Rollback, bool]:
    """Lower the rate of a rollback to the start by what the loss after the first step is at several rates.

    Every rank must call it. Weights and optimizer are as before the first step, before and afterwards.

    Returns:
        Also whether a checkpoint was asked for meanwhile.
    """
    peak = run.job.spec.train.learning_rate
    rates = rates_to_try(peak)
    run.reporter.event("phase", f"measuring the loss after one step at {len(rates)} learning rates", phase="measure")
    losses, _, save = losses_along_first_step(run, rates, rewound=True)
    run.engine.restart(local_model_dir(run.job.model))
    rate = rate_after(rates, losses)
    if rate is None or rate >= peak * rollback.rate_factor:
        return rollback, save
    return replace(rollback, rate_factor=rate / peak, is_measured=True), save


def check_precision(run: Run, commit: Commit) -> None:
    """Raise SpecError if the run would continue in another precision, which may depend on the device."""
    if commit.precision != run.engine.precision:
        raise SpecError(
            f"the run was computed in {commit.precision} so far, and would continue in {run.engine.precision} on this "
            f"device. Set train.bf16: {str(commit.precision == 'bf16').lower()} in the spec of the resume, or start "
            "a new run"
        )


def check_base(run: Run, commit: Commit) -> None:
    """Raise DataError if an adapter would continue on another base model, which its checkpoint does not hold."""
    if None not in (commit.base_digest, run.base_digest) and commit.base_digest != run.base_digest:
        raise DataError(
            f"the weights in model.path {run.job.spec.model.path} are not those on which the adapter was trained for "
            f"{many(commit.step, 'step')}. Give the same base model, or start a new run"
        )


def check_data(run: Run, commit: Commit) -> None:
    """Recompute the digest chain from the row order on rank 0, and compare it with the checkpoint's on all ranks.

    Raises:
        DataError: the prepared data is not that of the checkpoint.
        RunFailed: the row order differs.
    """
    fingerprint = run.prepared.manifest.fingerprint
    if commit.data_fingerprint != fingerprint:
        raise DataError(
            f"the data is not that of the run: its fingerprint is {fingerprint}, but the checkpoint of step "
            f"{commit.step} was trained on {commit.data_fingerprint}. Restore the old files, or start a new run"
        )
    same = True
    if run.worker.rank == 0:
        plan = run.with_raises(commit.replay_raises).plan
        same = chain_of(plan, run.row_digests, commit.step) == from_hex(commit.chain)
    if not from_rank_0(same):
        raise RunFailed(
            f"the {commit.step} steps before the checkpoint were trained on other samples, or in another order, than "
            "this data, seed and release give. A resume would repeat some samples and leave out others"
        )


def expected_loss(run: Run, step: int, chain: str) -> float | None:
    """Return the loss that an earlier attempt has logged for a step, or None. Rank 0 reads and broadcasts it.

    None also if this attempt draws other dropout masks: CPUs and each kind of GPU draw their own from the same seed.

    Args:
        chain: digest chain before the step, in hexadecimal digits.
    """
    loss: float | None = None
    if run.worker.rank == 0 and step <= run.plan.total_steps and run.device is not None:
        after = to_hex(extended(from_hex(chain), _planned_digest(run, step - 1)))
        with contextlib.suppress(StorageError):
            loss = logged_loss(run.job.paths, step, run.batching.per_device, after, run.device)
    return from_rank_0(loss)


def check_step(run: Run, state: LoopState, signals: StepSignals) -> None:
    """Compare a step's rows with the plan and, after a resume, its loss with the log; the same on all ranks.

    Raises:
        RunFailed: the rows are not those of the plan; or the loss is not the logged one, so the checkpoint did not
            restore the whole state.
    """
    if signals.digest != _planned_digest(run, state.step):
        raise RunFailed(f"step {state.step + 1} had other rows than the row order says: the reader is faulty")
    expected, tolerance = state.expected_loss, _TOLERANCE[run.engine.precision]
    if expected is not None and abs(signals.loss - expected) > tolerance * max(abs(expected), 1.0):
        raise RunFailed(
            f"step {state.step + 1} gave loss {signals.loss:.6f} after the resume, but the log of the run has "
            f"{expected:.6f}. The checkpoint did not restore the state that was saved. To resume from the one before "
            f"it, remove {run.job.paths.checkpoint(state.step)}"
        )


def _planned_digest(run: Run, step: int) -> int:
    """Return the digest of the rows that the plan has for a step, counted from 0."""
    rows = run.plan.rows_of_step(step)
    return step_digest(run.row_digests[rows], np.arange(len(rows)))


def load_best(run: Run, state: LoopState) -> LoopState:
    """Load the weights with the best score, if it belongs to an earlier state. Every rank must call it.

    Returns:
        The state; if earlier weights were loaded, with their score as `exported`.
    """
    for best in bests(run.job.spec, state):
        aside = best is state.set_aside
        if best.step == state.step and not aside:
            return state
        reader = replace(run.reader, paths=run.job.paths.set_aside) if aside else run.reader
        which = f"of step {best.step}{' before the run began again' if aside else ''}"
        if reader.restore(only=best.step) is not None:
            run.reporter.event("phase", f"taking the best checkpoint, {which}", phase="best")
            return replace(state, exported=best)
        run.reporter.event("warning", f"the best checkpoint, {which}, is gone: the next best is exported")
    return state
