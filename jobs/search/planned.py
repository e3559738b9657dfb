"""Computes the trials, steps and cost that a sweep's budget pays for. Pure; light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import SpecError
from jobs.search.duration import duration_of
from jobs.search.rules.auto import LATER, probe_steps
from jobs.search.rules.budget import BudgetPlan, checked_plan, compared_steps, most_gangs, most_repeats
from jobs.search.trials import Trials
from jobs.spec.sweep import SweepSpec


def plan_of(trials: Trials, sweep: SweepSpec | None = None) -> BudgetPlan:
    """Compute what the budget pays for; `sweep`: with its rules instead of the present ones. Raises SpecError."""
    searched = sweep or trials.sweep
    return checked_plan(searched, trials.total_steps, trials.tokens_per_run, trials.probe_steps, trials.searched)


def plan_if_later(trials: Trials) -> BudgetPlan | None:
    """Compute what the budget pays for with the later rung; None if more trials have begun than that."""
    sweep = trials.sweep.model_copy(update={"rungs": LATER})
    try:
        paid = checked_plan(sweep, trials.total_steps, trials.tokens_per_run, trials.probe_steps)
    except SpecError:
        return None
    return plan_of(trials, sweep) if len(trials.searched) <= paid.compared else None


def planned_steps(trials: Trials, plan: BudgetPlan) -> int | None:
    """Return the optimizer steps of all planned trials, without cool-downs; None if only time limits the search.

    Each trial is counted with the steps of the base.
    """
    steps = _steps(trials.sweep.model_copy(update={"cooldown": 0.0}), plan, trials.total_steps)
    return None if math.isinf(steps) else int(steps)


def _steps(sweep: SweepSpec, plan: BudgetPlan, total: int) -> float:
    """Return the optimizer steps of all planned trials and repeats; infinite if only time limits them."""
    if sweep.budget.trials is None and math.isinf(plan.runs) and (math.isinf(plan.compared) or plan.whole_runs):
        return math.inf
    repeats = most_repeats(sweep, plan)
    if sweep.scheduler == "halving":
        return compared_steps(sweep, int(plan.compared), total) + (plan.whole_runs + repeats) * total
    return (min(plan.compared, plan.runs if math.isinf(plan.runs) else math.ceil(plan.runs)) + repeats) * total


def steps_done(trials: Trials) -> int:
    """Return the optimizer steps of all trials so far. With other batches, a trial counts by its share of a run."""
    every = list(trials.trials.values())
    return round(sum(trial.step / trial.total_steps * trials.total_steps for trial in every if trial.total_steps))


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep without evaluations, checkpoints and the start of its gangs.

    Attributes:
        gangs: number of gangs at once.
        steps: optimizer steps of all trials, cool-downs and repeats, and of the probe.
        tokens: tokens of these steps.
        device_hours: hours of GPUs that train; of CPUs if the workers have no GPU.
        least_hours: hours until the last trial ends.
        limit_hours: hours of a budget in time on these gangs; None: it has no limit in time.
    """

    gangs: int
    steps: int
    tokens: float
    device_hours: float
    least_hours: float
    limit_hours: float | None = None


@dataclass(frozen=True)
class PlannedTrials:
    """What a plan of memory says of a sweep.

    Attributes:
        sweep: whose trials are planned.
        gangs: number of gangs at once.
        cost: of the whole budget; None: not known, or different for each engine.
    """

    sweep: SweepSpec
    gangs: int
    cost: Cost | None


def cost_of(sweep: SweepSpec, total_steps: int, gangs: int, devices: int, step_s: float, run_tokens: float) -> Cost:
    """Predict the cost of the whole budget.

    Args:
        sweep: a sweep that has its prior.
        total_steps: optimizer steps of one whole run.
        gangs: number of gangs that fit on the machines.
        devices: GPUs of one gang; its CPUs if it has no GPU.
        step_s: seconds of a step.
        run_tokens: tokens of one whole run.

    Raises:
        SpecError: the budget does not pay for one trial.
    """
    gangs, budget = max(min(gangs, most_gangs(sweep)), 1), sweep.budget
    plan = checked_plan(sweep, total_steps, run_tokens, probe_steps(sweep))
    found = duration_of(sweep, plan, total_steps, gangs, devices, step_s)
    limits = [
        *([] if budget.minutes is None else [budget.minutes / 60]),
        *([] if budget.gpu_hours is None else [budget.gpu_hours / (gangs * devices)]),
    ]
    return Cost(
        gangs=gangs,
        steps=round(found.steps),
        tokens=found.steps * run_tokens / total_steps,
        device_hours=found.steps * step_s * devices / 3600,
        least_hours=found.seconds / 3600,
        limit_hours=min(limits, default=None),
    )
