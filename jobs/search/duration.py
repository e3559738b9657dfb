"""Predicts what a search takes, by the rules by which its trials begin. Pure; light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.search.rules.auto import probe_steps
from jobs.search.rules.budget import BudgetPlan, finalists_of, most_repeats
from jobs.search.rules.rungs import ETA, cooldown_of, stops_of
from jobs.search.spending import limits_of
from jobs.spec.sweep import Budget, SweepSpec


@dataclass
class Duration:
    """What a search takes, without evaluations, checkpoints and the start of its gangs.

    Attributes:
        gangs: number of gangs, all of which are free now.
        step_s: seconds of a step.
        steps: optimizer steps of all trials, cool-downs and repeats, and of the probe.
        seconds: until the last trial ends. A trial that has begun is trained to its next score, so this can be more
            than a budget in time.
    """

    gangs: int
    step_s: float
    steps: float = 0.0
    seconds: float = 0.0

    def begin_within(self, until_s: float, length: float) -> float:
        """Return the number of trials of `length` steps that begin before a time in seconds since the start."""
        if math.isinf(until_s):
            return math.inf
        return self.gangs * max(math.ceil((until_s - self.seconds) / (length * self.step_s)), 0)

    def train(self, trials: float, length: float) -> int:
        """Count trials of `length` steps, and return their number."""
        self.steps += trials * length
        self.seconds += math.ceil(trials / self.gangs) * length * self.step_s
        return int(trials)


def duration_of(
    sweep: SweepSpec, plan: BudgetPlan, total_steps: int, gangs: int, devices: int, step_s: float
) -> Duration:
    """Predict what a search takes if no trial fails and each has as many steps as the base.

    Args:
        plan: what the budget pays for.
        total_steps: optimizer steps of one whole run.
        gangs: number of gangs at once.
        devices: GPUs of one gang; its CPUs if it has no GPU.
        step_s: seconds of a step.
    """
    whole_s, repeats = total_steps * step_s, most_repeats(sweep, plan)
    limits = limits_of(sweep.budget, repeats, gangs, devices, whole_s, {"01": (0.0, 0.0)})
    search_s = min((one.for_search / one.rate for one in limits), default=math.inf)

    is_halving, probe = sweep.scheduler == "halving", probe_steps(sweep)
    found = Duration(gangs, step_s)
    found.train(1, probe)
    stops = stops_of(sweep, total_steps) if is_halving else [total_steps]  # asha: at most whole runs
    cooldown = cooldown_of(sweep, total_steps)
    lengths = [
        stop - before + (cooldown if stop < total_steps else 0)
        for before, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]
    paid = plan.compared
    if not is_halving and math.isfinite(plan.runs):
        paid = min(paid, max(math.ceil(plan.runs - probe / total_steps), 1))
    ended = found.train(min(paid, found.begin_within(plan.first_share * search_s, lengths[0])), lengths[0])
    if plan.extrapolates:  # one of them may continue, and is a whole run then
        ended = 0
    else:
        for length in lengths[1:]:
            ended = found.train(max(ended // ETA, 1), length)
    whole = max(found.begin_within(search_s, total_steps), 1 if plan.extrapolates else 0)
    ended += found.train(min(plan.whole_runs, whole), total_steps)
    left = min(finalists_of(sweep, plan), ended) * (sweep.seeds - 1)
    while left and (most := _repeats_at_once(sweep.budget, found, devices, whole_s)):
        left -= found.train(min(left, most), total_steps)
    return found


def _repeats_at_once(budget: Budget, so_far: Duration, devices: int, whole_s: float) -> int:
    """Return the largest number of repeats that begin now: see `leaves_a_repeat`."""
    if budget.minutes is not None and so_far.seconds + whole_s > budget.minutes * 60:
        return 0
    if budget.gpu_hours is None:
        return so_far.gangs
    left = budget.gpu_hours * 3600 - so_far.seconds * so_far.gangs * devices
    return max(min(so_far.gangs, int(left / (whole_s * devices))), 0)
