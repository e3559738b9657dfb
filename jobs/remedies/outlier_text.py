"""Messages about outlying steps: skips, rollbacks and the end of a run, with what to change next time. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.text import many
from jobs.remedies.outliers import (
    FEWEST_STEPS,
    MOST_IN_A_ROW,
    MOST_ROLLBACKS,
    RATE_CUT,
    REMEDY,
    TROUBLE,
    Outlier,
    Rollback,
    in_trouble,
    rise_of,
)
from jobs.run.checkpoints import StepHistory
from jobs.run.remedies import RemedyReport

_LOWER_THE_RATE = (
    "Lower train.learning_rate or lengthen the warmup. Use bf16 or fp32 instead of fp16. Check the data of these "
    "steps, and the weights that the run started from."
)


def failure(history: StepHistory, step: int, learning_rate: float) -> str | None:
    """Return why the run fails after `step` steps and what to do; None while it may continue."""
    if in_trouble(history, step) and history.rollbacks >= MOST_ROLLBACKS:
        cause = rise_of(history) or f"the last {history.outliers_in_a_row} steps were outlying"
        if _is_data(history):
            to_do = f"Check the data of steps {_steps_of(history.bad_batches)}"
        else:
            to_do = _excessive(learning_rate, history.rate_factor)
        return f"{cause} again, after {history.rollbacks} rollbacks. {to_do}"
    if history.skipped_in_a_row >= MOST_IN_A_ROW:
        what = f"the last {history.skipped_in_a_row} steps changed nothing"
        if history.bad_data:
            return (
                f"{what}: their losses or gradients are outlying, even with the weights from before the trouble. "
                f"Check the data of steps {step - history.skipped_in_a_row + 1} to {step}"
            )
        return f"{what}: their gradients or losses are outlying or not finite. {_LOWER_THE_RATE}"
    if step >= FEWEST_STEPS and 2 * history.skipped >= step:
        return (
            f"{history.skipped} of {step} steps changed nothing: their gradients, or their losses, are not finite or "
            f"outlying. {_LOWER_THE_RATE}"
        )
    return None


def failure_report(history: StepHistory, step: int, learning_rate: float) -> RemedyReport | None:
    """Describe the failure of a run that is in trouble after its last rollback; None for any other."""
    if not in_trouble(history, step):
        return None
    cause = rise_of(history) or f"steps {step - history.outliers_in_a_row + 1} to {step} were outlying"
    if _is_data(history):
        to_change = f"check the data of steps {_steps_of(history.bad_batches)}"
    else:
        to_change = _lower_rate(learning_rate, history.rate_factor * RATE_CUT)
    return RemedyReport(REMEDY, f"{cause} again", "no rollback is left", "the run fails", to_change)


def _is_data(history: StepHistory) -> bool:
    """Whether bad batches, and not the learning rate, have caused all trouble so far."""
    return history.rate_factor == 1 and bool(history.bad_batches)


def _steps_of(ranges: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{first + 1} to {stop}" for first, stop in ranges)


def untrained(steps: int) -> str:
    """Explain the failure of a run in which every step was skipped."""
    return (
        f"none of {many(steps, 'step')} changed the weights: the gradients or losses were never finite. "
        f"{_LOWER_THE_RATE}"
    )


def _excessive(learning_rate: float, factor: float) -> str:
    """Name an excessive learning rate, and suggest one."""
    reached = f", and so is {learning_rate * factor:.3g}" if factor < 1 else ""
    return (
        f"train.learning_rate {learning_rate:g} is too high{reached}. Start a new run with at most "
        f"{learning_rate * factor * RATE_CUT:.3g}, or lengthen the warmup"
    )


def skip_message(step: int, outlier: Outlier, scale: float | None) -> str:
    """Describe a skipped step in one line. `step` is counted from 1; `scale`: the loss scale of fp16."""
    scaled = "" if scale is None else f"; the loss scale of fp16 is now {scale:g}"
    return f"step {step} is skipped and changes nothing: {outlier}{scaled}"


def skip_report(step: int, outlier: Outlier, history: StepHistory, learning_rate: float) -> RemedyReport:
    """Describe a skipped step as a remedy. `step` is counted from 1; `learning_rate`: of the spec."""
    effect = "weights and optimizer stay as they are"
    return RemedyReport(REMEDY, f"step {step}: {outlier}", "skipped", effect, advice(history, learning_rate))


def rollback_report(rollback: Rollback, target: int, learning_rate: float) -> RemedyReport:
    """Describe a rollback to step `target`. `learning_rate`: of the spec."""
    state = f"the checkpoint of step {target}" if target else "the start"
    cause = rollback.rise or f"steps {rollback.begins + 1} to {rollback.until} were outlying"
    again = rollback.until - target
    if rollback.cuts_rate:
        cause += " again" if rollback.number > 1 else ""
        cause += f", so train.learning_rate {learning_rate:g} is too high"
        action = f"the run goes back to {state} and continues with at most {learning_rate * rollback.rate_factor:.3g}"
        if rollback.is_measured:
            action += ", which follows from the loss after one step at several rates"
        to_change = _lower_rate(learning_rate, rollback.rate_factor)
    else:
        first, stop = rollback.barred or (0, 0)
        action = f"the run goes back to {state} and skips the batches of steps {first + 1} to {stop}"
        to_change = f"check the data of steps {first + 1} to {stop}"
    return RemedyReport(REMEDY, cause, action, f"{many(again, 'step')} are computed again", to_change, again)


def advice(history: StepHistory, learning_rate: float) -> str:
    """Say what to change in the next run, as a clause. `learning_rate`: of the spec."""
    cut = history.rate_factor < 1
    return _lower_rate(learning_rate, history.rate_factor) if cut else "check the data of the skipped steps"


def _lower_rate(learning_rate: float, factor: float) -> str:
    return f"set train.learning_rate to at most {learning_rate * factor:.3g}"


def summary(history: StepHistory, learning_rate: float, step: int | None) -> str | None:
    """Say after the last step what the remedies did, what they cost and what to change; None if they did nothing.

    Args:
        step: the last one; None: the state of an earlier step is exported.
    """
    if not history.outliers and not history.rollbacks:
        return None
    again = many(history.steps_again, "step")
    skipped = f"{many(history.outliers, 'step')} skipped" if history.outliers else ""
    back = f"{many(history.rollbacks, 'rollback')}, which cost {again} computed again" if history.rollbacks else ""
    said = f"outlying steps: {', '.join(filter(None, (skipped, back)))}" if skipped else f"loss that rose: {back}"
    if history.rate_factor == 1 and step is not None and history.skipped_in_a_row >= TROUBLE:
        said += (
            f". The last {history.skipped_in_a_row} steps changed nothing, so the model is that of step "
            f"{step - history.skipped_in_a_row}"
        )
    return f"{said}. Next time, {advice(history, learning_rate)}"
