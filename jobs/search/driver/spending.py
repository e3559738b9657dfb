"""Counts how much of its budget a search has used, and decides by it what kind of trial may begin."""

from __future__ import annotations

import threading
import time

from jobs.planning import gang_of
from jobs.search.driver.gangs import Gangs
from jobs.search.rules.budget import BudgetPlan, Next, next_kind
from jobs.search.time_limits import Spent, leaves_a_repeat, time_limits
from jobs.search.trials import Trials


class Spending:
    """Counts what this driver and earlier ones have used. Its methods may be called by any thread."""

    def __init__(self, trials: Trials, gangs: Gangs, driver: str) -> None:
        """`driver` is the name of this driver, as in `Trials.spent`."""
        self._trials, self._gangs, self._driver = trials, gangs, driver
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
            devices = len(self._gangs.workers_kept) * (gang.gpus_per_worker or gang.cpus_per_worker)
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
    return next_kind(trials.searched, plan, used, goes_on, to_repeat, is_repeating)
