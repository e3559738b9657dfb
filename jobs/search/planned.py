"""The trials and steps that the budget of a sweep pays for, and the steps done so far. Pure; light to import."""

from __future__ import annotations

import math

from jobs.errors import SpecError
from jobs.search.rules.auto import LATER
from jobs.search.rules.budget import BudgetPlan, checked_plan, compared_steps
from jobs.search.trials import Trials, most_repeats


def plan_if_later(trials: Trials) -> BudgetPlan | None:
    """Compute what the budget pays for with the later rung; None if more trials have begun than that."""
    try:
        later = trials.sweep.model_copy(update={"rungs": LATER})
        plan = checked_plan(later, trials.total_steps, trials.tokens_per_run, trials.probe_steps)
    except SpecError:
        return None
    return plan if len(trials.searched) <= plan.compared else None


def planned_steps(trials: Trials, plan: BudgetPlan) -> int | None:
    """Return the optimizer steps of all planned trials, without cool-downs; None if only time limits the search.

    Each trial is counted with the steps of the base.
    """
    total, repeats = trials.total_steps, most_repeats(trials.sweep)
    if trials.sweep.scheduler == "halving" and plan.compared < math.inf:
        without = trials.sweep.model_copy(update={"cooldown": 0.0})
        return compared_steps(without, int(plan.compared), total) + (plan.whole_runs + repeats) * total
    count = min(plan.compared, plan.runs)
    return None if math.isinf(count) else int((count + repeats) * total)


def steps_done(trials: Trials) -> int:
    """Return the optimizer steps of all trials so far. With other batches, a trial counts by its share of a run."""
    every = list(trials.trials.values())
    return round(sum(trial.step / trial.total_steps * trials.total_steps for trial in every if trial.total_steps))
