"""The limits of a sweep's budget in minutes and GPU-hours, and the time that repeats of finalists need. Pure; light."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.planning import gang_of
from jobs.search.trials import Trials, most_repeats
from jobs.spec.finetune import Spec

_MOST_REPEATED = 0.5  # of a limit

Spent = Mapping[str, tuple[float, float]]  # seconds, and seconds times GPUs (or CPUs), by driver


@dataclass(frozen=True)
class TimeLimit:
    """A limit in time, in seconds or in seconds times GPUs (or CPUs).

    Attributes:
        used: by the search, its repeats included.
        repeats: what all repeats take, whether they have begun or not (otherwise, the first one would make room for
            trials), and the trials that still run when the search has used its part.
        next: what must be left for one more repeat: it, and the running ones, in full.
    """

    limit: float
    used: float
    repeats: float
    next: float

    @property
    def share(self) -> float:
        """The used share of what is for the search. At most half of the limit is kept for repeats."""
        return self.used / (self.limit - min(self.repeats, self.limit * _MOST_REPEATED))


def time_limits(trials: Trials, spent: Spent) -> list[TimeLimit]:
    """Return the limits in minutes and GPU-hours. What a repeat takes is measured on the trials so far. Pure."""
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
    """GPUs of one gang; without GPUs, CPUs."""
    gang = gang_of(base)
    return gang.num_workers * (gang.gpus_per_worker or gang.cpus_per_worker)


def seconds_of_a_run(trials: Trials) -> float:
    """Seconds of a whole run on one gang, from the trials so far; 0 while no trial has been trained. Pure."""
    trained = [trial for trial in list(trials.trials.values()) if trial.seconds and trial.step]
    runs = sum(trial.step / trial.total_steps for trial in trained)
    return sum(trial.seconds for trial in trained) / runs if runs else 0.0


def leaves_a_repeat(trials: Trials, spent: Spent) -> bool:
    """Whether each limit in time has room for one more repeat. Pure."""
    return all(one.used + one.next <= one.limit for one in time_limits(trials, spent))
