"""Successive halving: after each rung, the better part of the trials goes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from jobs.search.spec import SweepSpec

ETA: Final = 2  # of the trials of a rung, one in so many goes on


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


def halving_steps(trials: int, stops: Sequence[int], eta: int, cooldown: int) -> int:
    """Optimizer steps that so many trials take in all if none fails.

    Args:
        stops: steps of the rungs, and the last step.
        cooldown: steps that are taken for the score at a rung.
    """
    total, before = 0, 0
    for stop in stops:
        total += trials * (stop - before + (cooldown if stop < stops[-1] else 0))
        trials, before = max(1, trials // eta), stop
    return total


def trials_within(steps: float, stops: Sequence[int], eta: int, cooldown: int) -> int:
    """The most trials that take no more steps than these in all; 0 where one takes more."""
    trials = 0
    while halving_steps(trials + 1, stops, eta, cooldown) <= steps:
        trials += 1
    return trials


def stops_of(sweep: SweepSpec, total_steps: int, straight: bool = False) -> list[int]:
    """Steps at which a trial is compared, and the last one. `straight`: it is not compared."""
    rungs = () if sweep.scheduler == "none" or straight else sweep.rungs
    return sorted({min(max(round(share * total_steps), 1), total_steps) for share in (*rungs, 1.0)})


def cooldown_of(sweep: SweepSpec, total_steps: int) -> int:
    """Steps in which the rate falls to zero before the score at a rung."""
    return max(round(sweep.cooldown * total_steps), 1) if sweep.cooldown else 0
