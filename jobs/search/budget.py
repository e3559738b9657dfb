"""How many trials a budget pays for, and what kind of trial may begin next. Pure; light to import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.search.auto import rate_name
from jobs.search.rungs import ETA, cooldown_of, halving_steps, stops_of, trials_within
from jobs.search.spec import MOST_TRIALS, Budget, Range, SweepSpec

_FOR_THE_REST = 3  # auto: of so many runs, one goes to a trial that is trained to its end without a comparison
_MOST_STRAIGHT = 16
_USUAL_GANGS = 8
_MANY = 1000  # trials, of whose steps shares are taken


class Begun(Protocol):
    """A trial as these rules see it."""

    @property
    def straight(self) -> bool: ...

    @property
    def state(self) -> str: ...

    @property
    def scores(self) -> Sequence[object]: ...


@dataclass(frozen=True)
class BudgetPlan:
    """What is begun at most.

    Attributes:
        compared: trials that are compared at rungs, or all trials where there are none.
        straight: trials that go to the last step without a comparison, after the others.
        first_share: share of the time that may have passed when the last one of `compared` begins.
    """

    compared: float = math.inf
    straight: int = 0
    first_share: float = 1.0


Next = Literal["compared", "straight", "wait", "done", "stopped"]  # stopped: somebody has asked for the end


def budget_plan(sweep: SweepSpec, stops: Sequence[int], cooldown: int, tokens_per_run: float) -> BudgetPlan:
    """Share the budget of a sweep out.

    Args:
        stops: steps at which a trial is scored, and the last one.
        cooldown: steps for the score at a rung.
        tokens_per_run: of a run of the base to its end.
    """
    budget, total = sweep.budget, stops[-1]
    most = min(budget.trials or math.inf, sweep.grid_size if sweep.algorithm == "grid" else math.inf)
    if sweep.scheduler != "halving":
        return BudgetPlan(most)
    runs = runs_of(budget, tokens_per_run)
    straight = int(min(runs, most, _MOST_STRAIGHT * _FOR_THE_REST) // _FOR_THE_REST)
    straight = int(min(straight, most_straight(sweep)))
    compared = most - straight
    if runs < math.inf:
        compared = min(compared, trials_within((runs - straight) * total, stops, ETA, cooldown))
    first_share = (stops[0] + cooldown) * _MANY / halving_steps(_MANY, stops, ETA, cooldown)
    return BudgetPlan(compared, straight, first_share)


def runs_of(budget: Budget, tokens_per_run: float) -> float:
    """The runs that it pays for; infinite where neither `runs` nor `tokens` bounds it."""
    return min(budget.runs or math.inf, (budget.tokens or math.inf) / tokens_per_run)


def next_kind(trials: Sequence[Begun], plan: BudgetPlan, used: float, any_goes_on: bool) -> Next:
    """What kind of trial may begin.

    Args:
        used: share of the budget, beside what the plan counts.
        any_goes_on: a trial that is paused at a rung is to go on.
    """
    straight = sum(trial.straight for trial in trials)
    if used < plan.first_share and len(trials) - straight < plan.compared:
        return "compared"
    # One that was interrupted before its first rung is paused too, and goes on when a gang is free.
    unfinished = [
        trial
        for trial in trials
        if trial.state in ("waiting", "running") or (trial.state == "paused" and not trial.scores)
    ]
    if any_goes_on or any(not trial.straight for trial in unfinished):
        return "wait"
    if used < 1 and straight < plan.straight:
        return "straight"
    return "wait" if unfinished else "done"


def most_straight(sweep: SweepSpec) -> float:
    """Whole runs without a comparison that differ from each other."""
    name = rate_name(sweep)
    if sweep.algorithm != "auto" or name is None:
        return 0
    if len(sweep.dimensions) > 1:
        return math.inf
    return 1 if isinstance(sweep.dimensions[name], Range) else 0


def most_gangs(sweep: SweepSpec) -> int:
    """Gangs that a sweep has at once at most: more trials beside each other would begin before others can tell.

    A budget in tokens bounds nothing here: how many a run takes is not known before the data is prepared.
    """
    known = sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"tokens": None})})
    plan = budget_plan(known, stops_of(known, _MANY), cooldown_of(known, _MANY), 1.0)
    runs = math.ceil(min(known.budget.runs or math.inf, MOST_TRIALS)) if known.scheduler != "halving" else MOST_TRIALS
    return max(1, int(min(known.num_gangs or _USUAL_GANGS, plan.compared, runs)))
