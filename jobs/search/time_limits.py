"""The limits of a sweep's budget in minutes and GPU-hours, and the time that repeats of finalists need. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.planning import gang_of
from jobs.search.trials import Trials, most_repeats
from jobs.spec.finetune import Spec

_MOST_REPEATED = 0.5  # largest share of a limit that is kept for repeats

Spent = Mapping[str, tuple[float, float]]  # seconds, and seconds times GPUs (or CPUs), by driver


@dataclass(frozen=True)
class TimeLimit:
    """A limit in time. All values are seconds, or seconds times GPUs (without GPUs, CPUs).

    Attributes:
        limit: the limit of the budget.
        used: the time that search and repeats have used.
        repeats: the time that is kept for all repeats, begun or not, and for trials that still run when the search has
            used its share.
        next: the time that must be left to begin one more repeat: its own, and the whole time of the running ones.
    """

    limit: float
    used: float
    repeats: float
    next: float

    @property
    def share(self) -> float:
        """The used share of the time for the search, which is the limit without the time that is kept for repeats."""
        return self.used / (self.limit - min(self.repeats, self.limit * _MOST_REPEATED))


def time_limits(trials: Trials, spent: Spent) -> list[TimeLimit]:
    """Return the limits in minutes and GPU-hours. The time of a repeat is estimated from the trials so far. Pure."""
    budget, per_gang = trials.sweep.budget, _devices(trials.sweep.base)
    seconds, device_seconds = (sum(each[place] for each in spent.values()) for place in (0, 1))
    whole_s = seconds_of_a_run(trials)
    running = sum(trial.repeats is not None and not trial.is_over for trial in list(trials.trials.values()))
    repeats = most_repeats(trials.sweep)
    running_last = 1 if repeats else 0
    gangs = max(round(device_seconds / (seconds * per_gang)), 1) if seconds else 1
    found = []
    if budget.minutes is not None:
        found.append(
            TimeLimit(budget.minutes * 60, seconds, (math.ceil(repeats / gangs) + running_last) * whole_s, whole_s)
        )
    if budget.gpu_hours is not None:
        each = whole_s * per_gang
        found.append(
            TimeLimit(
                budget.gpu_hours * 3600, device_seconds, (repeats + running_last * gangs) * each, (running + 1) * each
            )
        )
    return found


def _devices(base: Spec) -> int:
    """Return the GPUs of one gang; without GPUs, its CPUs."""
    gang = gang_of(base)
    return gang.num_workers * (gang.gpus_per_worker or gang.cpus_per_worker)


def seconds_of_a_run(trials: Trials) -> float:
    """Estimate the seconds of a whole run on one gang from the trials so far; 0 before the first answer. Pure."""
    trained = [trial for trial in list(trials.trials.values()) if trial.seconds and trial.step]
    runs = sum(trial.step / trial.total_steps for trial in trained)
    return sum(trial.seconds for trial in trained) / runs if runs else 0.0


def leaves_a_repeat(trials: Trials, spent: Spent) -> bool:
    """Whether each limit in time has room for one more repeat. Pure."""
    return all(one.used + one.next <= one.limit for one in time_limits(trials, spent))
