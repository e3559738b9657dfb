"""Successive halving: after each rung, the better trials continue. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from jobs.search.trial import Trial
from jobs.spec.sweep import SweepSpec

ETA: Final = 4  # one in this many trials continues after a rung, as in the paper on ASHA (arXiv 1810.05934)


def going_on(trials: Sequence[Trial], rungs: int, eta: int, lower_is_better: bool) -> list[int]:
    """Return the numbers of the trials that continue from the lowest rung where a trial may continue, best first.

    One in `eta` of the trials that have reached a rung continues from it, at least one. No trial continues before every
    trial that has not ended has reached the first rung. The trials that do not continue stay paused. They may continue
    later, when more trials have reached their rung.

    Args:
        trials: each has one score for each rung that it has reached, and one for its end.
        rungs: number of rungs.
    """
    alive = [trial for trial in trials if not trial.is_over]
    if any(not trial.scores for trial in alive):
        return []
    for rung in range(1, rungs + 1):
        reached = sum(len(trial.scores) >= rung for trial in trials)
        # One that failed or was stopped later on is replaced.
        beyond = sum(len(trial.scores) > rung and trial.state not in ("failed", "stopped") for trial in trials)
        room = max(max(1, reached // eta) - beyond, 0)
        here = [trial for trial in alive if len(trial.scores) == rung]
        if going := sorted(here, key=lambda trial: trial.scores[-1][1], reverse=not lower_is_better)[:room]:
            return [trial.number for trial in going]
    return []


def trials_to_clear(ranked: Sequence[Trial], sizes: Mapping[int, float], most: float) -> list[int]:
    """Return the numbers of the trials whose checkpoints are removed, so that the others take at most `most` bytes.

    Failed trials come first, then stopped ones, then the worst of the others. The best trial keeps its checkpoints, and
    so do trials that wait or run.

    Args:
        ranked: the trials, best first.
        sizes: bytes of the checkpoints, by trial number.
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


def halving_steps(trials: int, stops: Sequence[int], cooldown: int) -> int:
    """Return the optimizer steps of `trials` trials in successive halving, if none fails.

    Args:
        stops: steps of the rungs, and the last step.
        cooldown: optimizer steps of a cool-down.
    """
    total, before = 0, 0
    for stop in stops:
        total += trials * (stop - before + (cooldown if stop < stops[-1] else 0))
        trials, before = max(1, trials // ETA), stop
    return total


def stops_of(sweep: SweepSpec, total_steps: int, without_rungs: bool = False) -> list[int]:
    """Return the steps after which a trial is scored: the rungs, and the last step."""
    rungs = () if sweep.scheduler == "none" or without_rungs else sweep.rung_shares
    return sorted({min(max(round(share * total_steps), 1), total_steps) for share in (*rungs, 1.0)})


def next_stop(sweep: SweepSpec, trial: Trial) -> int:
    """Return the step to which a trial is trained next: its first stop that has no score yet.

    A trial may have been interrupted exactly at a rung, before its score was recorded. So its step does not decide.
    """
    stops = stops_of(sweep, trial.total_steps, trial.without_rungs)
    return stops[min(len(trial.scores), len(stops) - 1)]


def cooldown_of(sweep: SweepSpec, total_steps: int) -> int:
    """Return the optimizer steps of a cool-down."""
    return max(round(sweep.cooldown * total_steps), 1) if sweep.cooldown else 0
