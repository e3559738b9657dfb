"""How much of its budget a search has used, the time that repeats need, and what kind of trial may begin by that."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jobs.planning import gang_of
from jobs.search.rules.auto import first_whole_run
from jobs.search.rules.budget import BudgetPlan, Next, most_repeats, next_kind, whole_runs_begun
from jobs.search.rules.untried import untried
from jobs.search.trials import Trials
from jobs.spec.finetune import Spec
from jobs.spec.sweep import Budget

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
        rate: how much of it is used in one second.
    """

    limit: float
    used: float
    repeats: float
    next: float
    rate: float = 1.0

    @property
    def for_search(self) -> float:
        """The limit without the time that is kept for repeats."""
        return self.limit - min(self.repeats, self.limit * _MOST_REPEATED)

    @property
    def share(self) -> float:
        """The used share of the time for the search."""
        return self.used / self.for_search


def time_limits(trials: Trials, spent: Spent) -> list[TimeLimit]:
    """Return the limits in minutes and GPU-hours. The time of a repeat is estimated from the trials so far. Pure."""
    budget, per_gang = trials.sweep.budget, devices_of(trials.sweep.base)
    if budget.minutes is None and budget.gpu_hours is None:
        return []
    seconds, device_seconds = (sum(each[place] for each in spent.values()) for place in (0, 1))
    running = sum(trial.repeats is not None and not trial.is_over for trial in list(trials.trials.values()))
    gangs = max(round(device_seconds / (seconds * per_gang)), 1) if seconds else 1
    repeats = most_repeats(trials.sweep, trials.plan)
    return limits_of(budget, repeats, gangs, per_gang, seconds_of_a_run(trials), spent, running)


def limits_of(
    budget: Budget, repeats: int, gangs: int, per_gang: int, whole_s: float, spent: Spent, running: int = 0
) -> list[TimeLimit]:
    """Return the limits in minutes and GPU-hours. Pure.

    Args:
        repeats: the largest number of repeats.
        gangs: number of gangs at once.
        per_gang: GPUs of one gang; its CPUs if it has no GPU.
        whole_s: seconds of a whole run.
        running: repeats that are being trained.
    """
    seconds, device_seconds = (sum(each[place] for each in spent.values()) for place in (0, 1))
    running_last, found = 1 if repeats else 0, []
    if budget.minutes is not None:
        kept_s = (math.ceil(repeats / gangs) + running_last) * whole_s
        found.append(TimeLimit(budget.minutes * 60, seconds, kept_s, whole_s))
    if budget.gpu_hours is not None:
        each = whole_s * per_gang
        kept = (repeats + running_last * gangs) * each
        used, rate = device_seconds, float(gangs * per_gang)
        found.append(TimeLimit(budget.gpu_hours * 3600, used, kept, (running + 1) * each, rate))
    return found


def devices_of(base: Spec) -> int:
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


class Spending:
    """Counts what this driver and earlier ones have used. Its methods may be called by any thread."""

    def __init__(self, trials: Trials, num_workers: Callable[[], int], driver: str) -> None:
        """
        Args:
            num_workers: returns the number of workers whose machines the gangs hold now.
            driver: the name of this driver, as in `Trials.spent`.
        """
        self._trials, self._num_workers, self._driver = trials, num_workers, driver
        self._lock = threading.Lock()
        self._began_s = self._counted_s = time.monotonic()
        self._device_s = 0.0  # up to `_counted_s`

    def so_far(self) -> tuple[str, float, float]:
        """Return the use of this driver: its name, seconds, and seconds times GPUs (without GPUs, times CPUs).

        The time since the last call is counted with the present number of gangs.
        """
        gang = gang_of(self._trials.sweep.base)
        with self._lock:
            now_s = time.monotonic()
            devices = self._num_workers() * (gang.gpus_per_worker or gang.cpus_per_worker)
            self._device_s += (now_s - self._counted_s) * devices
            self._counted_s = now_s
            return self._driver, now_s - self._began_s, self._device_s

    def next_kind(self, plan: BudgetPlan) -> Next:
        """Decide what kind of trial may begin now."""
        driver, seconds, device_seconds = self.so_far()
        return kind_within(self._trials, plan, {**self._trials.spent, driver: (seconds, device_seconds)})


def used_share(trials: Trials, spent: Spent, plan: BudgetPlan) -> float:
    """Return the largest used share of the budget's limits in time and, without halving, in tokens. Pure."""
    used = [0.0, *(one.share for one in time_limits(trials, spent))]
    if trials.sweep.scheduler != "halving":
        begun = [trial for trial in trials.searched if not trial.is_over]
        to_come = sum(1 - trial.step / trial.total_steps for trial in begun)
        tokens = trials.probe_tokens + sum(trial.tokens for trial in trials.searched)
        used.append((tokens / trials.tokens_per_run + to_come) / plan.runs)
    return max(used)


def kind_within(trials: Trials, plan: BudgetPlan, spent: Spent) -> Next:
    """Decide what kind of trial may begin, given what all drivers have used so far. Pure."""
    used, goes_on = used_share(trials, spent, plan), bool(trials.going_on)
    to_repeat = trials.to_repeat() is not None and leaves_a_repeat(trials, spent)
    is_repeating = any(trial.repeats and not trial.is_over for trial in list(trials.trials.values()))
    return next_kind(trials.searched, untried_only(trials, plan), used, goes_on, to_repeat, is_repeating)


def untried_only(trials: Trials, plan: BudgetPlan) -> BudgetPlan:
    """Return the plan without whole runs for which no values are left that have not been tried. Pure."""
    if not plan.whole_runs or (trials.best is None and not plan.extrapolates):
        return plan
    left = untried(trials.sweep, trials.searched, trials.best_values, trials.total_steps)
    if plan.extrapolates:
        begun = whole_runs_begun(trials.searched, plan)
        is_left = left is None or bool(left) or trials.has_further_rate
        return plan if is_left else replace(plan, whole_runs=min(plan.whole_runs, begun))
    if left is None:
        return plan
    begun = sum(trial.without_rungs for trial in trials.searched)
    extrapolated = not begun and first_whole_run(trials.sweep, trials.best_values) is not None  # at another rate
    return replace(plan, whole_runs=min(plan.whole_runs, begun + len(left) + extrapolated))
