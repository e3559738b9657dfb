"""Rules for outlying steps: which steps are skipped, when a run goes back to an earlier state, and when it fails.

A step is outlying if its loss or the norm of its gradient is far above those of the steps before it, or is not finite.
The loop leaves out the update of such a step. If that does not end the outliers, the weights are at fault: the run goes
back to an earlier checkpoint, first without the batches before the trouble. Their losses with the earlier weights show
whether these batches are at fault. If they are not, further trouble halves the learning rate.

A learning rate that is far too high may raise the loss step by step, without an outlier. So the median of the newest
losses is compared with the lowest one so far. If it is far above, and the rows of the lowest one have a far higher loss
now, the run goes back and continues with half of the rate at which the loss was lowest, but with at least a sixteenth
of the present one. For a rate that ruins the run
before there is a lowest loss, see `excessive_rate`.

All functions are pure, and their inputs are equal on all ranks, so all ranks decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from jobs.remedies.excessive_rate import worse_than_at_first
from jobs.run.checkpoints import StepHistory

REMEDY: Final = "outlier_steps"  # as in `jobs.spec.remedies`
WINDOW: Final = 32  # steps that a step is compared with
FEWEST: Final = 8  # steps before the first comparison
COMPARE_AGAIN: Final = 256  # steps after rows of the lowest losses were measured and had no higher loss
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
RATE_CUT: Final = 0.5  # the range of good rates is about a factor of two wide, with a cliff above it
_LARGEST_CUT = 1 / 16  # of one rollback: the first steps of a long warmup say little

# fp16 needs at most 17 consecutive skips to find its loss scale: 16 halvings from 2^16 to 1, the first after two.
MOST_IN_A_ROW: Final = 20
FEWEST_STEPS: Final = 40  # steps before the share of skipped ones is judged


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
    cuts_rate: bool = True
    is_measured: bool = False  # the rate follows from losses after one step (see `excessive_rate`)


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
    return any(first <= step < stop for first, stop in _left_out(history))


def _left_out(history: StepHistory) -> tuple[tuple[int, int], ...]:
    return history.bad_batches if history.barred is None else (*history.bad_batches, history.barred)


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
    at_fault, end = in_a_row >= TROUBLE, step + 1
    is_told = history.barred is not None and end == history.barred[1]
    ends_bar = any(end == stop for _, stop in _left_out(history))
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
            "bad_data": not applied and (history.bad_data or (ends_bar and at_fault)),
            "batches_at_fault": at_fault if is_told else history.batches_at_fault,
            "bad_batches": tuple(sorted({*_left_out(history)})) if is_told and at_fault else history.bad_batches,
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


def lowest_to_measure(history: StepHistory, step: int) -> range | None:
    """Return the steps (from 0) whose rows are to be measured again after `step` steps; None: no loss seems to rise.

    It seems to if the newest losses are far above the lowest ones of the run: their median, and each newest one above
    each lowest one, because the losses of small batches differ much. Rows of another source have higher losses, too.
    So the rows of the lowest losses are measured: they show whether the weights are damaged.
    """
    newest, lowest = history.losses[-FEWEST:], history.lowest_losses
    if not lowest or len(newest) < FEWEST or min(newest) <= max(lowest):
        return None
    if not _far_above(statistics.median(newest), statistics.median(lowest)):
        return None
    if history.lowest_compared_at and step < history.lowest_compared_at + COMPARE_AGAIN:
        return None
    middle = max(history.lowest_at - FEWEST // 2, 0)
    return range(max(middle - 1, 0), middle + 2)


def compared_with_lowest(history: StepHistory, step: int, loss: float) -> StepHistory:
    """Return the history with the present loss, without dropout, of the rows of `lowest_to_measure`."""
    has_risen = not math.isfinite(loss) or _far_above(loss, statistics.median(history.lowest_losses))
    return history.model_copy(update={"lowest_compared_at": step, "has_risen": has_risen})


def rise_of(history: StepHistory) -> str | None:
    """Say how far the newest losses are above the lowest ones of the run, or above the first one; None if not far."""
    if (worse := worse_than_at_first(history)) is not None:
        return worse
    if not history.has_risen:
        return None
    now, least = statistics.median(history.losses[-FEWEST:]), statistics.median(history.lowest_losses)
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

    If steps were outlying, the first rollback leaves out the batches before and in the trouble. If these batches were
    at fault, the next trouble is answered in the same way. If not, each further rollback cuts the learning rate, and
    the batches are used again if the outliers have come again soon. If the loss has risen, the rate is cut at once. If
    the loss was lowest in the warmup, the rate was still a part of its peak then, because it rises linearly.
    """
    if not in_trouble(history, step) or history.rollbacks >= MOST_ROLLBACKS:
        return None
    number, barred = history.rollbacks + 1, history.barred
    if (worse := worse_than_at_first(history)) is not None:
        return Rollback(number, 0, step, barred, history.rate_factor * RATE_CUT, worse)
    if (rise := rise_of(history)) is not None:
        middle = history.lowest_at - len(history.lowest_losses) // 2
        part_of_peak = min(middle / max(warmup_steps, 1), 1.0)
        factor = history.rate_factor * max(RATE_CUT * part_of_peak, _LARGEST_CUT)
        return Rollback(number, history.lowest_at, step, barred, factor, rise)
    first = step - history.outliers_in_a_row
    if history.batches_at_fault or (history.batches_at_fault is None and barred is None):
        return Rollback(number, first, step, (max(first - SUSPECTED, 0), step), history.rate_factor, cuts_rate=False)
    is_soon = barred is not None and step <= barred[1] + WINDOW
    return Rollback(number, first, step, None if is_soon else barred, history.rate_factor * RATE_CUT)


def targets_of(rollback: Rollback, saved: Sequence[int]) -> list[int]:
    """List the checkpoints to go back to, in order of preference. After the last one follows the start of the run.

    The newest one before all suspected batches is preferred. If there is none, or all of them are damaged, the oldest
    one before the trouble is still better than the start.
    """
    safe = rollback.begins - SUSPECTED
    before = sorted((step for step in saved if step <= safe), reverse=True)
    return before + sorted(step for step in saved if safe < step <= rollback.begins)


def after_rollback(earlier: StepHistory, history: StepHistory, rollback: Rollback, target: int) -> StepHistory:
    """Return the history with which the run continues: that of the earlier state, with the counts of the whole run."""
    kept = with_counts(earlier, history)
    changed: dict[str, object] = {
        "steps_again": history.steps_again + rollback.until - target,
        "rollbacks": rollback.number,
        "rate_factor": rollback.rate_factor,
        "barred": rollback.barred,
    }
    if rollback.rise is None:  # the answer for the new batches is not known yet; after a cut, no batch is suspected
        changed["batches_at_fault"] = False if rollback.cuts_rate else None
    return kept.model_copy(update=changed)


def with_counts(earlier: StepHistory, history: StepHistory, same_rows: bool = True) -> StepHistory:
    """Return an earlier history with the counts of the whole run.

    Args:
        same_rows: whether the later steps have the same batches again, so that it matters which of them are bad.
    """
    names = ("barred", "batches_at_fault", "bad_batches") if same_rows else ()
    return earlier.model_copy(update={**history.counts(), **{name: getattr(history, name) for name in names}})


def without_window(history: StepHistory) -> StepHistory:
    """Return the history without the losses that later steps are compared with, because those have other rows."""
    return history.model_copy(update={"losses": (), "norms": (), "lowest_losses": (), "has_risen": False})
