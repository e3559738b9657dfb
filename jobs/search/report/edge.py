"""Finds out whether the best learning rate was the lowest or the highest that was compared. Light to import."""

from __future__ import annotations

import math
from typing import Final, Literal

from pydantic import Field

from jobs.frozen import Shown
from jobs.search.rules.auto import BRACKETED, brackets_rate, rate_name, rate_range
from jobs.search.trials import Trials

_NEAR: Final = 1.2  # ratio of rates between which no search would try another one


class RateAtEdge(Shown):
    """The end of the compared learning rates that had the best score."""

    end: Literal["lowest", "highest"]
    rate: float
    compared: int = Field(description="Learning rates that were compared.")
    is_within: bool = Field(description="Whether more trials of this search may try rates beyond it.")

    @property
    def beyond(self) -> str:
        """Where untried rates are."""
        return "lower" if self.end == "lowest" else "higher"


def edge_of(trials: Trials) -> RateAtEdge | None:
    """Return the end of the compared learning rates that had the best score; None: it was best between others.

    Of equal scores the highest rate counts, as in `jobs.search.rules.rates`.
    """
    name = rate_name(trials.sweep)
    if name is None or not (scores := _scores_by_rate(trials, name)) or len(set(scores.values())) < 2:
        return None
    lowest, highest = min(scores), max(scores)
    best = max(rate for rate, score in scores.items() if score == min(scores.values()))
    rates, is_open = rate_range(trials.sweep), brackets_rate(trials.sweep) and len(scores) < BRACKETED
    if best == lowest:
        return RateAtEdge(
            end="lowest",
            rate=lowest,
            compared=len(scores),
            is_within=is_open and rates is not None and lowest > _NEAR * rates.min,
        )
    if best < highest or any(trial.diverged and trial.values[name] > highest for trial in trials.searched):
        return None
    if trials.greatest_rate is not None and highest * _NEAR > trials.greatest_rate:  # the probe has ruled out more
        return None
    return RateAtEdge(
        end="highest",
        rate=highest,
        compared=len(scores),
        is_within=is_open and rates is not None and highest * _NEAR < rates.max,
    )


def _scores_by_rate(trials: Trials, name: str) -> dict[float, float]:
    """Return the best score of each rate; lower is better. With `auto`, these are the scores at the first rung."""
    sign, brackets = 1.0 if trials.sweep.lower_is_better else -1.0, brackets_rate(trials.sweep)
    found = dict[float, float]()
    for trial in trials.searched:
        score = trial.scores[0][1] if brackets and trial.scores else trial.score
        if score is not None and not (brackets and trial.without_rungs):
            rate = trial.values[name]
            found[rate] = min(found.get(rate, math.inf), sign * score)
    return found


def edge_warning(trials: Trials) -> str | None:
    """Return a warning if `auto` found the best score at the highest or the lowest rate that it compared."""
    edge = edge_of(trials) if brackets_rate(trials.sweep) else None
    if edge is None:
        return None
    return (
        f"the score was still best at the {edge.end} learning rate that was compared ({edge.rate:.2g}), so the best "
        f"rate may lie {'below' if edge.end == 'lowest' else 'above'}: start a new sweep with prior.learning_rate: "
        f"{edge.rate:.2g}, and a space that reaches {edge.beyond}"
    )
