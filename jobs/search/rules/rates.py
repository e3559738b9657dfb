"""Chooses the next learning rate of a search by bracketing the best rate so far. Pure.

A Gaussian process that knows three points would try the ends of its range. With a bracket, six trials at a rung find
the best rate within a factor of 1.3 (tests/unit/jobs/search/rules/test_rates.py). For the gain, see bench/RESULTS.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Final

from jobs.planning.learning_rate import vertex_of

CLEARLY: Final = 0.01  # share of a loss; smaller differences are noise
UP: Final = 1.75  # factor to the next rate above the best one; a small one, because much too high rates diverge
DOWN: Final = 3.0  # factor to the next rate below the best one, where the loss changes slowly
# Share of a loss. If the highest rate is better than the next lower one by more, the loss still falls at it.
_FALLING: Final = 0.05
_APART: Final = 1.2  # least factor between the best rate and a new one; with less, the scores would hardly differ


def next_rate(scores: Mapping[float, float | None], least: float, greatest: float) -> float:
    """Return the rate of the next trial.

    Args:
        scores: scores of all trials that were begun, by rate; lower is better. None: not known yet. Infinite: failed.
        least, greatest: ends of the range.
    """
    known = {math.log(rate): score for rate, score in scores.items() if score is not None}
    low, high = math.log(least), math.log(greatest)
    begun = sorted(math.log(rate) for rate in scores)
    place = None
    if any(map(math.isfinite, known.values())):
        place = _in_bracket(known, low, high)
    elif known:  # all have failed, most likely because their rates are too high
        place = max(begun[0] - math.log(DOWN), low)
    if place is None or any(abs(place - other) < math.log(_APART) / 2 for other in begun):
        place = _widest_gap(begun, low, high)
    return min(max(math.exp(place), least), greatest)


def best_rate(scores: Mapping[float, float]) -> float:
    """Estimate the best rate from scores.

    It is the minimum of the parabola through the best point and its two neighbours. If the highest rate is the best
    one, it is that rate; if it is clearly the best one, the loss still falls there, and the estimate is halfway to the
    rate that would be tried next. If the next higher rate has failed, it is the lowest rate whose score is at most 1 %
    worse than the best one: lower rates are safer, because training diverges at rates above the best one.

    Args:
        scores: by rate; lower is better. Infinite: failed.
    """
    known = {math.log(rate): score for rate, score in scores.items()}
    if (vertex := _vertex_at_best(known)) is not None:
        return math.exp(vertex)
    left, place, right = _around_best(known)
    best = known[place]
    if right is None:
        falls = left is not None and best + _FALLING * abs(best) < known[left] < math.inf
        return math.exp(place) * (math.sqrt(UP) if falls else 1.0)
    return min(rate for rate, score in scores.items() if score <= best + CLEARLY * abs(best))


def _in_bracket(known: Mapping[float, float], low: float, high: float) -> float | None:
    """Return a place (the logarithm of a rate) beside the best one, or between it and a neighbour; None: no room.

    Args:
        known: scores by place.
        low, high: ends of the range, as places.
    """
    left, best, right = _around_best(known)
    if right is None and high - best > math.log(_APART):
        return min(best + math.log(UP if left is not None else DOWN), high)
    if left is None and best - low > math.log(_APART):
        return max(best - math.log(DOWN), low)
    if left is None or right is None:
        other = left if left is not None else right
        return None if other is None else (best + other) / 2
    vertex = vertex_of({place: known[place] for place in (left, best, right)})
    margin = math.log(_APART) / 2
    if vertex is None or abs(vertex - best) < 2 * margin or not left + margin < vertex < right - margin:
        return (best + right) / 2 if right - best >= best - left else (best + left) / 2
    return vertex


def _vertex_at_best(known: Mapping[float, float]) -> float | None:
    """Return the minimum of the parabola through the best place and its neighbours; None if there is none."""
    left, best, right = _around_best(known)
    if left is None or right is None:
        return None
    vertex = vertex_of({place: known[place] for place in (left, best, right)})
    return vertex if vertex is not None and left < vertex < right else None


def _around_best(known: Mapping[float, float]) -> tuple[float | None, float, float | None]:
    """Return the place with the best score, and its neighbours on the left and right; None: there is no neighbour.

    Of equal scores, the highest place counts: where rates are too low, all models give the same answers, and the same
    accuracy.
    """
    places = sorted(known)
    at = places.index(min(places, key=lambda place: (known[place], -place)))
    return places[at - 1] if at else None, places[at], places[at + 1] if at + 1 < len(places) else None


def _widest_gap(begun: list[float], low: float, high: float) -> float:
    """Return the middle of the widest gap between the tried places, with one more place beyond each end."""
    edges = [max(begun[0] - math.log(DOWN), low), *begun, min(begun[-1] + math.log(DOWN), high)]
    gaps = [(right - left, (left + right) / 2) for left, right in itertools.pairwise(edges)]
    return max(gaps)[1]
