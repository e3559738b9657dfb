"""Successive halving: after each rung, the better part of the trials goes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Scored(Protocol):
    """A trial as the rule sees it."""

    @property
    def number(self) -> int: ...

    @property
    def scores(self) -> list[tuple[int, float]]: ...

    @property
    def is_over(self) -> bool: ...


def kept(
    trials: Sequence[Scored], stops: Sequence[int], eta: int, lower_is_better: bool
) -> tuple[list[int], list[int]]:
    """Numbers of the trials that go on to the next rung, best first, and of those that end here.

    A rung is decided once every trial that is not over has reached it: one in `eta` of those that came so far goes on,
    at least one.

    Args:
        stops: steps of the rungs, and the last step.
    """
    going: list[int] = []
    ended: list[int] = []
    alive = [trial for trial in trials if not trial.is_over]
    for stop in stops[:-1]:
        here = [trial for trial in alive if trial.scores and trial.scores[-1][0] == stop]
        if not here or any(not trial.scores or trial.scores[-1][0] < stop for trial in alive):
            continue
        reached = sum(any(step >= stop for step, _ in trial.scores) for trial in trials)
        beyond = sum(any(step > stop for step, _ in trial.scores) for trial in trials)
        room = max(1, reached // eta) - beyond
        ranked = sorted(here, key=lambda trial: trial.scores[-1][1], reverse=not lower_is_better)
        going += [trial.number for trial in ranked[: max(room, 0)]]
        ended += [trial.number for trial in ranked[max(room, 0) :]]
    return going, ended
