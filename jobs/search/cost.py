"""Predicts the cost of a sweep's whole budget from the plan of one gang. Pure; light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.search.rules.auto import probe_steps
from jobs.search.rules.budget import checked_plan, compared_steps, most_gangs
from jobs.search.trials import most_repeats
from jobs.spec.sweep import SweepSpec


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep without evaluations, checkpoints and the start of its gangs.

    Attributes:
        gangs: number of gangs at once.
        steps: optimizer steps of all trials, cool-downs and repeats, and of the probe.
        tokens: tokens of these steps, padding included.
        device_hours: hours of GPUs; of CPUs if the workers have no GPU.
        least_hours: hours on these gangs, if all of them are busy to the end.
    """

    gangs: int
    steps: int
    tokens: float
    device_hours: float
    least_hours: float


def cost_of(sweep: SweepSpec, total_steps: int, gangs: int, devices: int, step_s: float, step_tokens: float) -> Cost:
    """Predict the cost of the whole budget.

    Args:
        sweep: a sweep that has its prior.
        total_steps: optimizer steps of one whole run.
        gangs: number of gangs that fit on the machines.
        devices: GPUs of one gang; its CPUs if it has no GPU.
        step_s: seconds of a step.
        step_tokens: tokens of a step, padding included.

    Raises:
        SpecError: the budget does not pay for one trial.
    """
    gangs = max(min(gangs, most_gangs(sweep)), 1)
    steps = _steps(sweep, total_steps, total_steps * step_tokens)
    budget = sweep.budget
    if budget.minutes is not None:
        steps = min(steps, budget.minutes * 60 * gangs / step_s)
    if budget.gpu_hours is not None:
        steps = min(steps, budget.gpu_hours * 3600 / (devices * step_s))
    gang_s = steps * step_s
    return Cost(gangs, round(steps), steps * step_tokens, gang_s * devices / 3600, gang_s / gangs / 3600)


def _steps(sweep: SweepSpec, total: int, tokens_per_run: float) -> float:
    """Return the optimizer steps that the budget pays for; infinite if only time limits it."""
    probe = probe_steps(sweep)
    plan = checked_plan(sweep, total, tokens_per_run, probe)
    repeats = most_repeats(sweep) * total
    if sweep.scheduler != "halving" or math.isinf(plan.compared):
        return min(plan.compared, plan.runs) * total + repeats
    return compared_steps(sweep, int(plan.compared), total) + plan.whole_runs * total + repeats + probe
