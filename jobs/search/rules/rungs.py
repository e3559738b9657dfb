"""Successive halving: after each rung, the better trials continue. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from jobs.spec.sweep import SweepSpec

ETA: Final = 4  # one in this many trials continues after a rung, as in the paper on ASHA


class Scored(Protocol):
    """A trial as the rule sees it."""

    @property
    def number(self) -> int: ...

    @property
    def scores(self) -> list[tuple[int, float]]: ...

    @property
    def is_over(self) -> bool: ...


def going_on(trials: Sequence[Scored], rungs: int, eta: int, lower_is_better: bool) -> list[int]:
    """Numbers of the trials that continue from the lowest rung where a trial may continue, best first.

    One in `eta` of the trials that have reached a rung continues from it, at least one. The rule decides nothing before
    every open trial has reached the first rung, and nothing at a higher rung while a trial is still on its way there.
    The other trials stay paused. They may continue later, when more trials have reached their rung.

    Args:
        trials: each has one score for each rung that it has reached, and one for its end.
        rungs: how many there are.
    """
    alive = [trial for trial in trials if not trial.is_over]
    if any(not trial.scores for trial in alive):
        return []
    for rung in range(1, rungs + 1):
        reached = sum(len(trial.scores) >= rung for trial in trials)
        beyond = sum(len(trial.scores) > rung for trial in trials)
        room = max(max(1, reached // eta) - beyond, 0)
        here = [trial for trial in alive if len(trial.scores) == rung]
        if going := sorted(here, key=lambda trial: trial.scores[-1][1], reverse=not lower_is_better)[:room]:
            return [trial.number for trial in going]
    return []


class Kept(Protocol):
    """A trial whose checkpoints take room."""

    @property
    def number(self) -> int: ...

    @property
    def state(self) -> str: ...


def given_up(ranked: Sequence[Kept], sizes: Mapping[int, float], most: float) -> list[int]:
    """Numbers of the trials whose checkpoints are removed, so that the others take at most `most`.

    Failed trials come first, then stopped ones, then the worst of the others. The best trial keeps its checkpoints, and
    so do trials that wait or run.

    Args:
        ranked: the trials, best first.
        sizes: bytes of the checkpoints, by trial number.
        most: bytes.
    """
    order = {"failed": 0, "stopped": 1, "finished": 2, "paused": 2}
    candidates = [trial for trial in ranked[1:] if trial.state in order][::-1]
    found, left = [], sum(sizes.values())
    for trial in sorted(candidates, key=lambda trial: order[trial.state]):
        if left <= most:
            break
        if sizes.get(trial.number):
            found.append(trial.number)
            left -= sizes[trial.number]
    return found


def halving_steps(trials: int, stops: Sequence[int], eta: int, cooldown: int) -> int:
    """Optimizer steps of `trials` trials in successive halving, if none fails.

    Args:
        stops: steps of the rungs, and the last step.
        cooldown: optimizer steps of a cool-down.
    """
    total, before = 0, 0
    for stop in stops:
        total += trials * (stop - before + (cooldown if stop < stops[-1] else 0))
        trials, before = max(1, trials // eta), stop
    return total


def stops_of(sweep: SweepSpec, total_steps: int, straight: bool = False) -> list[int]:
    """Steps at which a trial is scored, the last one included. `straight`: a whole run, which has only the last one."""
    rungs = () if sweep.scheduler == "none" or straight else sweep.rung_shares
    return sorted({min(max(round(share * total_steps), 1), total_steps) for share in (*rungs, 1.0)})


def cooldown_of(sweep: SweepSpec, total_steps: int) -> int:
    """Optimizer steps of a cool-down."""
    return max(round(sweep.cooldown * total_steps), 1) if sweep.cooldown else 0
