"""Rules for outlying steps: which steps are skipped, when a run goes back to an earlier state, and when it fails.

A step is outlying if its loss or the norm of its gradient is far above those of the steps before it, or is not finite.
The loop leaves out the update of such a step. If that does not end the outliers, the weights are at fault: the run goes
back to an earlier checkpoint, first without the batches before the trouble, and then with half the learning rate.

A learning rate that is far too high may raise the loss step by step, without an outlier. So the median of the newest
losses is compared with the lowest one so far. If it is far above, the run goes back and continues with half of the
rate at which the loss was lowest, but with at least a sixteenth of the present one. For a rate that ruins the run
before there is a lowest loss, see `excessive_rate`.

All functions are pure, and their inputs are equal on all ranks, so all ranks decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cluster.text import many
from jobs.remedies.excessive_rate import worse_than_at_first
from jobs.run.checkpoints import StepHistory
from jobs.run.remedies import RemedyReport

REMEDY: Final = "outlier_steps"  # as in `jobs.spec.remedies`
WINDOW: Final = 32  # steps that a step is compared with
FEWEST: Final = 8  # steps before the first comparison
# A value is outlying if its logarithm is this many deviations above the median, and the value itself is far above it
# (a norm) or above the highest loss (a loss, because sources may differ in theirs; see `_highest`). The bounds were
# chosen from the curves in docs/decisions/0032-outlier-steps.md.
LOSS_FACTOR: Final = 2.0
LOSS_EXCESS: Final = 1.0  # nats; the loss of a language model of 4 nats never doubles
LEAST_EXCESS: Final = 0.2  # nats; once a run knows its samples by heart, far smaller losses differ by large factors
NORM_FACTOR: Final = 20.0
LEAST_NORM: Final = 1.0  # to which gradients are usually clipped
DEVIATIONS: Final = 8.0
_DEVIATION_OF_MAD = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
_LEAST = 1e-9  # the logarithm of a loss of 0 is taken here
_MOST_LOG = 700.0  # of a float

TROUBLE: Final = 3  # consecutive outlying steps after which the weights are suspected
SUSPECTED: Final = 8  # steps before the first outlier whose batches may have done the damage
MOST_ROLLBACKS: Final = 4
_RATE_CUT = 0.5  # the range of good rates is about a factor of two wide, with a cliff above it
_LARGEST_CUT = 1 / 16  # of one rollback: the first steps of a long warmup say little

# fp16 needs at most 17 consecutive skips to find its loss scale: 16 halvings from 2^16 to 1, the first after two.
MOST_IN_A_ROW: Final = 20
FEWEST_STEPS: Final = 40  # steps before the share of skipped ones is judged

_LOWER_THE_RATE = (
    "Lower train.learning_rate or lengthen the warmup. Use bf16 or fp32 instead of fp16. Check the data of these "
    "steps, and the weights that the run started from."
)


@dataclass(frozen=True)
class Outlier:
    """A loss or the norm of a gradient that is far above the others, or not finite."""

    what: Literal["loss", "gradients"]
    value: float
    median: float | None = None  # of the steps before; None if the value is not finite

    def numbers(self) -> dict[str, float | None]:
        """Return the numbers for an event. In JSON there is no infinity."""
        return {"value": self.value if math.isfinite(self.value) else None, "median": self.median}

    def __str__(self) -> str:
        name = {"loss": "its loss", "gradients": "the norm of its gradient"}[self.what]
        if not math.isfinite(self.value):
            return f"its loss is {self.value}" if self.what == "loss" else "its gradients are not finite"
        return f"{name} is {self.value:.4g}; the median of the steps before is {self.median:.4g}"


@dataclass(frozen=True)
class Rollback:
    """A decision to go back to an earlier state."""

    number: int  # of this run's rollbacks, from 1
    begins: int  # the first outlying step, or the first one after the lowest losses; from 0
    until: int  # steps that were done
    barred: tuple[int, int] | None
    rate_factor: float
    rise: str | None = None  # how the loss rose; None: steps were outlying
    is_measured: bool = False  # the rate follows from losses after one step (see `excessive_rate`)

    @property
    def cuts_rate(self) -> bool:
        return self.number > 1 or self.rise is not None


def outlier_of(history: StepHistory, loss: float, norm: float) -> Outlier | None:
    """Compare a step with the steps before it; None if it is normal."""
    if not math.isfinite(loss):
        return Outlier("loss", loss)
    if not math.isfinite(norm):
        return Outlier("gradients", norm)
    middle, high = _middle_and_bound(history.losses)
    if loss > high and _far_above(loss, _highest(history, high)):
        return Outlier("loss", loss, middle)
    middle, high = _middle_and_bound(history.norms)
    if norm > max((high, *history.norms)) and norm > max(NORM_FACTOR * middle, LEAST_NORM):
        return Outlier("gradients", norm, middle)
    return None


def _highest(history: StepHistory, high: float) -> float:
    """Return the highest loss of the window.

    If a single loss is above `high`, the second highest is returned: the first FEWEST steps are not compared, and one
    of them may be an outlier. But once an earlier step was skipped for its loss, such batches belong to the data.
    """
    *_, second, highest = sorted(history.losses)
    is_usual = history.skipped_for_loss and not history.outliers_in_a_row
    return second if highest > high >= second and not is_usual else highest


def _middle_and_bound(window: Sequence[float]) -> tuple[float, float]:
    """Return the median of the window, and the value that is DEVIATIONS above it; infinite if the window is too short.

    The deviation is that of the logarithms, because the spread of losses and norms grows with their size: near the end
    of a run that knows its samples by heart, a batch has ten times the loss of another.
    """
    if len(window) < FEWEST:
        return math.inf, math.inf
    logs = [math.log(max(one, _LEAST)) for one in window]
    median = statistics.median(logs)
    deviation = _DEVIATION_OF_MAD * statistics.median(abs(one - median) for one in logs)
    return math.exp(median), math.exp(min(median + DEVIATIONS * deviation, _MOST_LOG))


def is_barred(history: StepHistory, step: int) -> bool:
    """Whether the batch of this step (from 0) is skipped after a rollback."""
    return history.barred is not None and history.barred[0] <= step < history.barred[1]


def after_step(
    history: StepHistory,
    step: int,
    loss: float,
    norm: float | None,
    *,
    outlier: Outlier | None,
    applied: bool,
    scaling: bool,
) -> StepHistory:
    """Return the history after the step with this number, counted from 0.

    Args:
        norm: of the gradient; None if the step is not to be compared with later ones.
        applied: the step changed the weights.
        scaling: fp16 can still lower its loss scale, so a step that it skipped is part of its search.
    """
    barred = is_barred(history, step)
    counted = not applied and not scaling and not barred
    in_a_row = history.outliers_in_a_row + 1 if outlier is not None else 0
    kept = applied and norm is not None and math.isfinite(loss)
    losses = (*history.losses, loss)[-WINDOW:] if kept else history.losses
    lowest, as_low = _lowest(history.lowest_losses, losses[-FEWEST:])
    ends_bar = history.barred is not None and step + 1 == history.barred[1]
    return history.model_copy(
        update={
            "losses": losses,
            "norms": (*history.norms, norm)[-WINDOW:] if kept else history.norms,
            "lowest_losses": lowest,
            "lowest_at": step + 1 if as_low else history.lowest_at,
            "first_loss": loss if step == 0 and math.isfinite(loss) else history.first_loss,
            "skipped": history.skipped + counted,
            "skipped_in_a_row": 0 if applied or (barred and outlier is None) else history.skipped_in_a_row + 1,
            "outliers": history.outliers + (outlier is not None and counted),
            "outliers_in_a_row": in_a_row,
            "skipped_for_loss": history.skipped_for_loss or (outlier is not None and outlier.what == "loss"),
            "bad_data": not applied and (history.bad_data or (ends_bar and in_a_row >= TROUBLE)),
        }
    )


def _lowest(lowest: tuple[float, ...], newest: tuple[float, ...]) -> tuple[tuple[float, ...], bool]:
    """Return the window of losses with the lower median, and whether the newest window is about as low."""
    if len(newest) < FEWEST:
        return lowest, False
    if not lowest or statistics.median(newest) < statistics.median(lowest):
        return newest, True
    _, _, upper_quartile = statistics.quantiles(lowest, n=4)
    return lowest, statistics.median(newest) <= upper_quartile


def rise_of(history: StepHistory) -> str | None:
    """Say how far the newest losses are above the lowest ones of the run, or above the first one; None if not far.

    All newest ones must be above all lowest ones, because the losses of small batches differ much.
    """
    if (worse := worse_than_at_first(history)) is not None:
        return worse
    newest, lowest = history.losses[-FEWEST:], history.lowest_losses
    if not lowest or len(newest) < FEWEST or min(newest) <= max(lowest):
        return None
    now, least = statistics.median(newest), statistics.median(lowest)
    if not _far_above(now, least):
        return None
    return f"the median loss rose from {least:.4g} at step {history.lowest_at} to {now:.4g}"


def _far_above(loss: float, middle: float) -> bool:
    return loss > max(LOSS_FACTOR * middle, middle + LEAST_EXCESS) or loss > middle + LOSS_EXCESS


def in_trouble(history: StepHistory, step: int) -> bool:
    """Whether the weights are suspected after `step` steps.

    They are if the loss has risen, or if outliers continue and no batch is known to be at fault. Before the first
    update there is no earlier state to go back to.
    """
    data_is_suspected = history.bad_data or is_barred(history, step - 1)
    outlying = history.outliers_in_a_row >= TROUBLE and not data_is_suspected and bool(history.losses)
    return outlying or rise_of(history) is not None


def rollback_of(history: StepHistory, step: int, warmup_steps: int) -> Rollback | None:
    """Decide after `step` steps whether to go back; None if there is no trouble, or no rollback is left.

    If steps were outlying, the first rollback leaves out the batches before and in the trouble, and each further one
    cuts the learning rate. If the outliers have come again soon, the batches were not the cause and are used again.
    If the loss has risen, the rate is cut at once. If the loss was lowest in the warmup, the rate was still a part of
    its peak then, because it rises linearly.
    """
    if not in_trouble(history, step) or history.rollbacks >= MOST_ROLLBACKS:
        return None
    number, barred = history.rollbacks + 1, history.barred
    if (worse := worse_than_at_first(history)) is not None:
        return Rollback(number, 0, step, barred, history.rate_factor * _RATE_CUT, worse)
    if (rise := rise_of(history)) is not None:
        middle = history.lowest_at - len(history.lowest_losses) // 2
        part_of_peak = min(middle / max(warmup_steps, 1), 1.0)
        factor = history.rate_factor * max(_RATE_CUT * part_of_peak, _LARGEST_CUT)
        return Rollback(number, history.lowest_at, step, barred, factor, rise)
    first = step - history.outliers_in_a_row
    if number == 1:
        barred = (max(first - SUSPECTED, 0), step)
    elif barred is not None and step <= barred[1] + WINDOW:
        barred = None
    factor = history.rate_factor * (1.0 if number == 1 else _RATE_CUT)
    return Rollback(number, first, step, barred, factor)


def targets_of(rollback: Rollback, saved: Sequence[int]) -> list[int]:
    """List the checkpoints to go back to, in order of preference. After the last one follows the start of the run.

    The newest one before all suspected batches is preferred. If there is none, the oldest one before the trouble is
    still better than the start.
    """
    safe = rollback.begins - SUSPECTED
    before = sorted((step for step in saved if step <= safe), reverse=True)
    return before or sorted(step for step in saved if safe < step <= rollback.begins)


def after_rollback(earlier: StepHistory, history: StepHistory, rollback: Rollback, target: int) -> StepHistory:
    """Return the history with which the run continues: that of the earlier state, with the counts of the whole run."""
    return earlier.model_copy(
        update={
            "outliers": history.outliers,
            "steps_again": history.steps_again + rollback.until - target,
            "rollbacks": rollback.number,
            "rate_factor": rollback.rate_factor,
            "barred": rollback.barred,
        }
    )


def without_window(history: StepHistory) -> StepHistory:
    """Return the history without the losses that later steps are compared with, because those have other rows."""
    return history.model_copy(update={"losses": (), "norms": (), "lowest_losses": ()})


def failure(history: StepHistory, step: int, learning_rate: float) -> str | None:
    """Return why the run fails after `step` steps and what to do; None while it may continue."""
    if in_trouble(history, step) and history.rollbacks >= MOST_ROLLBACKS:
        cause = rise_of(history) or f"the last {history.outliers_in_a_row} steps were outlying"
        excessive = _excessive(learning_rate, history.rate_factor)
        return f"{cause} again, after {history.rollbacks} rollbacks. {excessive}"
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
    to_change = _lower_rate(learning_rate, history.rate_factor * _RATE_CUT)
    return RemedyReport(REMEDY, f"{cause} again", "no rollback is left", "the run fails", to_change)


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
        f"{learning_rate * factor * _RATE_CUT:.3g}, or lengthen the warmup"
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
