"""The learning rate of a run that goes back to its start because its rate was excessive from the first steps on.

What is left of such a run says only that the rate was too high. So the first step is tried at several rates: the loss
after it falls with the rate, and rises again above the best one. The functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from jobs.planning.learning_rate import vertex_of

_RATES: Final = 16  # that are tried, each half of the next: down to 3e-5 times the excessive one
_CLEARLY: Final = 0.01  # share of a loss; smaller differences are noise
# Above the best rate of a whole run, the loss rises steeply, and below it slowly. The best rate was 0.7 to 0.9 of the
# best step's for a small Llama, and 0.6 to 2.6 of it for SmolLM2 (bench/RESULTS.md).
OF_BEST_STEP: Final = 0.7


def rates_to_try(excessive: float) -> tuple[float, ...]:
    """Return the rates of the first step, in ascending order."""
    return tuple(excessive / 2**power for power in reversed(range(_RATES)))


def rate_after(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return a rate for the whole run: OF_BEST_STEP of the one whose step lowers the loss most.

    Args:
        rates: in ascending order.
        losses: before the step, and after it at each rate.

    Returns:
        None if no step clearly lowers the loss, or only one at a rate above others that raise it. A new classification
        head learns nothing in one step.
    """
    before, *after = (loss if math.isfinite(loss) else math.inf for loss in losses)
    margin = _CLEARLY * abs(before)
    place = min(range(len(after)), key=lambda one: after[one])
    falls = after[place] <= before - margin and max(after[: place + 1]) <= before + margin
    if not falls or place == len(rates) - 1:
        return None
    around = range(max(place - 1, 0), place + 2)
    vertex = vertex_of({math.log(rates[one]): after[one] for one in around}) if len(around) == 3 else None
    return OF_BEST_STEP * (rates[place] if vertex is None else math.exp(vertex))
