"""A learning rate that is excessive from the first steps on: how it is noticed, and the rate to begin again with.

Such a run is ruined within a few steps, so only its first loss is that of healthy weights. Later losses are of other
rows, and may be higher for that reason. If they are, the loss of the first step's rows is measured again. A rate that
is less excessive may lower the training loss and still ruin what the model knew: then an evaluation shows it.

What is left of such a run says only that the rate was too high. So the first step is tried at several rates: the loss
after it falls with the rate, and rises again above the best one. The functions are pure.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Final

from jobs.planning.learning_rate import vertex_of
from jobs.run.checkpoints import StepHistory

_NEWEST: Final = 8  # losses whose median is compared with the first one
# The loss of rows on which the model was trained does not rise this far, unless the weights are damaged.
_WORSE: Final = 1.15  # times its first value
_LEAST_EXCESS: Final = 0.2  # nats
_RATES: Final = 16  # that are tried, each half of the next: down to 3e-5 times the excessive one
_CLEARLY: Final = 0.01  # share of a loss; smaller differences are noise
# Above the best rate of a whole run, the loss rises steeply, and below it slowly. The best rate was 0.6 to 0.9 of the
# best step's for a small Llama, and 0.6 to 2.6 of it for SmolLM2 (bench/RESULTS.md).
OF_BEST_STEP: Final = 0.7


def may_be_worse_than_at_first(history: StepHistory, step: int) -> bool:
    """Whether to measure the loss of the first step's rows again after `step` steps.

    If a measurement found no damage, the next one follows when the run has at least twice as many steps.
    """
    if history.first_loss is None or len(history.losses) < _NEWEST or step < 2 * history.first_compared_at:
        return False
    return statistics.median(history.losses[-_NEWEST:]) > history.first_loss


def compared_with_first(history: StepHistory, step: int, loss: float) -> StepHistory:
    """Return the history with the present loss of the first step's rows, without dropout."""
    assert history.first_loss is not None
    now = loss if _bound(history.first_loss) < loss < math.inf else None
    return history.model_copy(update={"first_compared_at": step, "first_loss_now": now})


def compared_with_base(history: StepHistory, before: float, now: float) -> StepHistory:
    """Return the history with the rise of the held-out loss since before training.

    Call it for the first evaluation only, and in the first epoch. Later, a model that knows its rows by heart may have
    a far higher held-out loss at any rate, and there are checkpoints that were better.
    """
    rise = (before, now) if _bound(before) < now < math.inf else None
    return history.model_copy(update={"held_out_rise": rise})


def _bound(before: float) -> float:
    return max(_WORSE * before, before + _LEAST_EXCESS)


def worse_than_at_first(history: StepHistory) -> str | None:
    """Say how far a loss has risen since before the first step; None if none has, or none is known."""
    if history.held_out_rise is not None:
        before, now = history.held_out_rise
        return f"eval_loss rose from {before:.4g} before training to {now:.4g}"
    if history.first_loss is None or history.first_loss_now is None:
        return None
    return f"the loss of the first step's rows rose from {history.first_loss:.4g} to {history.first_loss_now:.4g}"


def rates_to_try(excessive: float) -> tuple[float, ...]:
    """Return the rates of the first step, in ascending order."""
    return tuple(excessive / 2**power for power in reversed(range(_RATES)))


def rate_after(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return a rate for the whole run: OF_BEST_STEP of the one whose step lowers the loss most.

    If no step lowers the loss clearly, it is OF_BEST_STEP of the highest rate up to which no step raises it clearly.
    Such cases are a model that knows its rows well, and a new classification head, which learns nothing in one step.

    Args:
        rates: in ascending order.
        losses: before the step, and after it at each rate.

    Returns:
        None if the lowest rate raises the loss, or none does: then the rate is not at fault, or all are too high.
    """
    before, *after = (loss if math.isfinite(loss) else math.inf for loss in losses)
    margin = _CLEARLY * abs(before)
    harmless = list(itertools.takewhile(lambda loss: loss <= before + margin, after))
    if not math.isfinite(before) or not harmless or len(harmless) == len(after):
        return None
    place = min(range(len(harmless)), key=lambda one: harmless[one])
    if harmless[place] > before - margin:
        return OF_BEST_STEP * rates[len(harmless) - 1]
    if place == 0:
        return OF_BEST_STEP * rates[0]
    vertex = vertex_of({math.log(rates[one]): after[one] for one in (place - 1, place, place + 1)})
    return OF_BEST_STEP * (rates[place] if vertex is None else math.exp(vertex))
