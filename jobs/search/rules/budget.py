"""Computes how many trials a budget pays for, and what kind may begin next. Pure; light to import."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from cluster.errors import SpecError
from cluster.text import compact
from jobs.planning import plan_batching, total_rows
from jobs.search.rules.auto import BRACKETED, OTHER_RATES, brackets_rate, extrapolates, rate_name, rate_range
from jobs.search.rules.rungs import ETA, cooldown_of, halving_steps, stops_of
from jobs.search.rules.untried import listed, untried
from jobs.search.rules.varying import engines, field_meant, is_weight, trial_spec, values_to_check
from jobs.search.trial import Trial
from jobs.spec.finetune import Spec
from jobs.spec.sweep import MOST_TRIALS, Budget, SweepSpec

_RUNS_PER_WHOLE_RUN = 3  # auto: one whole run without a comparison for this many runs of the budget
_MOST_WHOLE_RUNS = 16
_DEFAULT_MAX_GANGS = 8  # if num_gangs is left out. With more, more trials begin before the scores of others are known
_USUAL_COMPARED = 6  # by auto, before one whole run
FINALISTS: Final = 2  # most trials that are repeated with other seeds
# If at least this many trials have begun, and all have failed without a score, no other trial begins. All points of
# grids and lists are tried, because one value may be the cause.
_HOPELESS = 8
_MANY = 1000  # trials, or steps: enough that rounding does not matter


@dataclass(frozen=True)
class BudgetPlan:
    """The numbers of trials that a sweep begins.

    Attributes:
        compared: most trials that are compared at rungs. Without rungs: most trials.
        whole_runs: most whole runs; they begin after the compared trials.
        first_share: once this share of the time is used, no more trials are begun for comparison.
        extrapolates: see `jobs.search.rules.auto.extrapolates`; a compared trial that continues is then a whole run.
        runs: tokens of all trials, in whole runs of the base; infinite if tokens do not limit the search.
        tries_all: the compared trials are points of lists, which are tried though all others have failed.
    """

    compared: float = math.inf
    whole_runs: int = 0
    first_share: float = 1.0
    extrapolates: bool = False
    runs: float = math.inf
    tries_all: bool = False


# "repeat": a finalist with another seed. "stopped": the sweep was asked to stop.
Next = Literal["compared", "whole", "repeat", "wait", "done", "stopped"]


def budget_plan(
    sweep: SweepSpec,
    total_steps: int,
    tokens_per_run: float,
    probe_steps: float = 0.0,
    begun: Sequence[Trial] = (),
) -> BudgetPlan:
    """Decide how many trials of each kind the budget pays for.

    If fewer values differ than that, whole runs get the rest of the budget. What has begun before the budget grew is
    paid for first.

    Args:
        total_steps, tokens_per_run: of one whole run of the base.
        probe_steps: cost of the probe. At least one compared trial remains.
        begun: the trials so far, except repeats.
    """
    plan = _paid_for(sweep, total_steps, tokens_per_run, probe_steps)
    before, whole_before = sum(not trial.without_rungs for trial in begun), whole_runs_begun(begun, plan)
    left = untried(sweep, begun, total_steps=total_steps)
    plan = replace(plan, tries_all=left is not None or sweep.algorithm == "grid")
    compared = min(plan.compared, max(_most_compared(sweep, total_steps), before))
    compared = compared if left is None else min(compared, before + len(left))
    if sweep.scheduler != "halving":
        return replace(plan, compared=compared)
    if before > compared:  # the earlier budget had fewer whole runs
        compared = before
    elif whole_before > plan.whole_runs:  # the best rate has moved to another trial, which has continued
        paid = (plan.runs - whole_before) * total_steps - probe_steps
        compared = max(before, min(compared, _trials_within(sweep, paid, total_steps)))
    whole = plan.whole_runs
    if compared != plan.compared:
        rest = plan.runs - (compared_steps(sweep, int(compared), total_steps) + probe_steps) / total_steps
        rest = min(rest, _paid_trials(sweep) - compared, _MOST_WHOLE_RUNS, most_whole_runs(sweep, total_steps))
        whole = int(max(rest, 1 if plan.extrapolates else 0))
    return replace(plan, compared=compared, whole_runs=max(whole, whole_before))


def _paid_for(sweep: SweepSpec, total_steps: int, tokens_per_run: float, probe_steps: float) -> BudgetPlan:
    most, runs, one_is_whole = _paid_trials(sweep), runs_of(sweep.budget, tokens_per_run), extrapolates(sweep)
    if sweep.scheduler != "halving":
        return BudgetPlan(most, runs=runs)
    whole = int(min(runs, most, _MOST_WHOLE_RUNS * _RUNS_PER_WHOLE_RUN) // _RUNS_PER_WHOLE_RUN)
    if one_is_whole:
        whole = max(whole, FINALISTS if _pays_for_finalists(sweep, runs, total_steps, probe_steps) else 1)
    whole = int(min(whole, most_whole_runs(sweep, total_steps)))
    compared = most - whole
    if runs < math.inf:
        left = (runs - whole) * total_steps - probe_steps
        compared = min(compared, max(_trials_within(sweep, left, total_steps), 1))
    usual = _USUAL_COMPARED if one_is_whole else _MANY
    usual_steps = compared_steps(sweep, usual, total_steps) + (total_steps if one_is_whole else 0)
    to_first_rung = stops_of(sweep, total_steps)[0] + cooldown_of(sweep, total_steps)
    return BudgetPlan(compared, whole, usual * to_first_rung / usual_steps, one_is_whole, runs)


def _most_compared(sweep: SweepSpec, total_steps: int) -> float:
    """Return the largest number of compared trials that are worth their steps.

    The rates of the first ones bracket the best rate. Scores at further ones would hardly differ. Without whole runs,
    further trials have the best rate and other values of the other fields.
    """
    if not brackets_rate(sweep):
        return math.inf
    return BRACKETED if sweep.scheduler == "halving" else BRACKETED + _others(sweep, total_steps) - 1


def _others(sweep: SweepSpec, total_steps: int) -> float:
    """Return the number of combinations of the fields other than the rate; infinite if one has a range."""
    name = rate_name(sweep)
    found = [values for other, values in listed(sweep, total_steps).items() if other != name]
    return math.prod(len(values) if isinstance(values, tuple) else math.inf for values in found)


def _pays_for_finalists(sweep: SweepSpec, runs: float, total_steps: int, probe_steps: float) -> bool:
    """Whether seeds ask for several whole runs of `auto`, and the budget pays for them beside the usual rates."""
    if sweep.seeds == 1 or _paid_trials(sweep) < FINALISTS + _USUAL_COMPARED:
        return False
    return runs >= FINALISTS + (compared_steps(sweep, _USUAL_COMPARED, total_steps) + probe_steps) / total_steps


def finalists_of(sweep: SweepSpec, plan: BudgetPlan) -> int:
    """Return the largest number of trials that are trained to their end and then repeated with other seeds."""
    if sweep.scheduler == "none":
        return int(min(FINALISTS, plan.compared, math.ceil(min(plan.runs, FINALISTS))))
    if plan.extrapolates:
        return min(FINALISTS, plan.whole_runs)
    if sweep.scheduler == "asha" or plan.compared == math.inf:
        return int(min(FINALISTS, plan.compared))
    ends = max(int(plan.compared // ETA ** len(sweep.rung_shares)), 1)
    return min(FINALISTS, ends + plan.whole_runs)


def most_repeats(sweep: SweepSpec, plan: BudgetPlan) -> int:
    """Return the largest number of repeats, which train finalists with other seeds."""
    return finalists_of(sweep, plan) * (sweep.seeds - 1)


def checked_plan(
    sweep: SweepSpec, total_steps: int, tokens_per_run: float, probe_steps: float, begun: Sequence[Trial] = ()
) -> BudgetPlan:
    """Return `budget_plan`. Raises SpecError: the budget does not pay for one trial."""
    if (wrong := budget_problem(sweep, total_steps, runs_of(sweep.budget, tokens_per_run))) is not None:
        raise SpecError.at("budget", wrong)
    return budget_plan(sweep, total_steps, tokens_per_run, probe_steps, begun)


def most_trials(sweep: SweepSpec) -> float:
    """Return the largest number of trials, without repeats; infinite if only other limits bound it."""
    few = untried(sweep, ()) if sweep.algorithm != "auto" else None
    return _paid_trials(sweep) if few is None else min(_paid_trials(sweep), len(few))


def _paid_trials(sweep: SweepSpec) -> float:
    """Return the trials of the budget, or of a grid; infinite if only other limits bound them."""
    return min(sweep.budget.trials or math.inf, sweep.grid_size if sweep.algorithm == "grid" else math.inf)


def compared_steps(sweep: SweepSpec, trials: int, total_steps: int) -> int:
    """Return the optimizer steps of `trials` compared trials with their cool-downs, without whole runs."""
    stops, cooldown = stops_of(sweep, total_steps), cooldown_of(sweep, total_steps)
    return trials * (stops[0] + cooldown) if extrapolates(sweep) else halving_steps(trials, stops, cooldown)


def _trials_within(sweep: SweepSpec, steps: float, total_steps: int) -> int:
    """Return the largest number of compared trials that fits into `steps` optimizer steps, at most MOST_TRIALS."""
    numbers = range(1, MOST_TRIALS + 1)
    return bisect.bisect_right(numbers, steps, key=lambda trials: compared_steps(sweep, trials, total_steps))


def runs_of(budget: Budget, tokens_per_run: float) -> float:
    """Return the whole runs that the budget pays for; infinite if neither `runs` nor `tokens` is set."""
    return min(budget.runs or math.inf, (budget.tokens or math.inf) / tokens_per_run)


def check_budget(sweep: SweepSpec) -> None:
    """Raise SpecError if a budget in runs or tokens cannot pay for one trial, whatever the data is.

    `checked_plan` checks a budget in tokens again, once the data is prepared.
    """
    if (wrong := budget_problem(sweep, _MANY, runs_of(sweep.budget, _fewest_tokens(sweep.base)))) is not None:
        raise SpecError.at("budget", wrong)


def _fewest_tokens(job: Spec) -> int:
    """Return a lower bound of the tokens of a run: the data has one row or more, and a row one token or more."""
    try:
        return total_rows(job, 1, plan_batching(job).rows)
    except SpecError:  # the check of the base reports it
        return 1


def budget_problem(sweep: SweepSpec, total_steps: int, runs: float) -> str | None:
    """Return a message if a budget of `runs` whole runs does not pay for one trial; None if it does."""
    if sweep.scheduler != "halving":
        return None
    needed = (compared_steps(sweep, 1, total_steps) + (total_steps if extrapolates(sweep) else 0)) / total_steps
    if runs >= needed:
        return None
    noun = "run" if runs == 1 else "runs"
    return (
        f"it pays for at most {compact(runs)} {noun}, but one trial with its cool-downs takes {compact(needed)}: give "
        "more, fewer rungs, or scheduler: none"
    )


def check_lengths(sweep: SweepSpec, steps_of: Callable[[Spec], int]) -> None:
    """Check the values that change the number of steps of a run, once the rows are counted.

    Args:
        steps_of: returns the optimizer steps of a job; raises SpecError.

    Raises:
        SpecError: a value is impossible for these rows, or leaves too few steps for the rungs.
    """
    others = [name for name in sweep.dimensions if field_meant(name) == "train.warmup_steps" or is_weight(name)]
    rungs = dict[str, int]()
    for engine in engines(sweep):
        each = [{**engine, name: value} for name in others for value in values_to_check(sweep.dimensions[name])]
        for values in (engine, *each):
            said = ", ".join(f"{name} {value}" for name, value in values.items())
            try:
                rungs[said] = len(stops_of(sweep, steps_of(trial_spec(sweep.base, values))))
            except SpecError as error:
                if not values:
                    raise
                raise SpecError.at("space", f"{said}: {error}") from error
    fewest = min(rungs, key=lambda said: rungs[said])
    if rungs[fewest] < max(rungs.values()):
        what = f"with {fewest}, a run has too few steps for the rungs: leave it out, or give fewer rungs"
        raise SpecError.at("space", what)


def next_kind(
    trials: Sequence[Trial],
    plan: BudgetPlan,
    used: float,
    any_goes_on: bool,
    to_repeat: bool = False,
    is_repeating: bool = False,
) -> Next:
    """Decide what kind of trial may begin now.

    Args:
        trials: all trials except repeats.
        used: the largest used share of the limits in minutes, in GPU-hours and, without halving, in tokens. With
            halving, `plan` limits the tokens.
        any_goes_on: whether a trial that is paused at a rung continues.
        to_repeat: whether a finalist has fewer seeds than the sweep asks for, and the budget has time for a repeat.
        is_repeating: whether a repeat is being trained, or waits for a gang.
    """
    compared, whole = [trial for trial in trials if not trial.without_rungs], whole_runs_begun(trials, plan)
    all_failed = bool(compared) and not any(trial.scores for trial in compared)
    if used < plan.first_share and len(compared) < plan.compared and not is_hopeless(trials, plan):
        return "compared"
    if any_goes_on or any(_is_unfinished(trial) for trial in compared):
        return "wait"
    # The values of a whole run are those of a finished trial, unless they are extrapolated.
    may_begin = not all_failed and (plan.extrapolates or any(trial.state == "finished" for trial in compared))
    if whole < whole_runs_allowed(trials, plan) and (used < 1 or (plan.extrapolates and whole == 0)) and may_begin:
        return "whole"
    if any(_is_unfinished(trial) for trial in trials):
        return "wait"
    return "repeat" if to_repeat else "wait" if is_repeating else "done"


def is_hopeless(trials: Sequence[Trial], plan: BudgetPlan) -> bool:
    """Whether the search gives up, because its first trials have all failed. `trials`: see `next_kind`."""
    compared = [trial for trial in trials if not trial.without_rungs]
    if plan.tries_all or len(compared) < _HOPELESS:
        return False
    return all(trial.is_over and not trial.scores for trial in compared)


def whole_runs_begun(trials: Sequence[Trial], plan: BudgetPlan) -> int:
    """Count the whole runs that have begun."""
    return sum(trial.is_whole if plan.extrapolates else trial.without_rungs for trial in trials)


def whole_runs_allowed(trials: Sequence[Trial], plan: BudgetPlan) -> int:
    """Return how many whole runs may begin in all: those of the plan, and one more while all of them have failed.

    Without it, a search whose only whole run has diverged would end without a model.
    """
    begun = [trial for trial in trials if (trial.is_whole if plan.extrapolates else trial.without_rungs)]
    return plan.whole_runs + (bool(begun) and all(trial.state == "failed" for trial in begun))


def _is_unfinished(trial: Trial) -> bool:
    """Whether the trial is being trained, or waits for a gang.

    A paused trial without a score has not reached its rung (it was interrupted, or the rung was moved), so it waits.
    """
    return trial.state in ("waiting", "running") or (trial.state == "paused" and not trial.scores)


def most_to_train(trials: Sequence[Trial], plan: BudgetPlan, kind: Next, going_on: int, repeats: int) -> float:
    """Return the largest number of trials that can be trained at once from now on. More gangs have no use.

    Args:
        trials: all trials except repeats.
        kind: of trial that may begin now.
        going_on: number of trials that are paused at a rung and continue.
        repeats: number of repeats that have not ended, or are still to begin.
    """
    if kind == "compared":
        return math.inf
    compared = [trial for trial in trials if not trial.without_rungs]
    trained = sum(_is_unfinished(trial) for trial in trials)
    later = max(whole_runs_allowed(trials, plan) - whole_runs_begun(trials, plan), 0)
    if plan.extrapolates:
        later = max(later, going_on)
    elif going_on or any(_is_unfinished(trial) for trial in compared):
        later += sum(trial.state == "paused" and bool(trial.scores) for trial in compared)
    return max(trained + later, repeats)


def most_whole_runs(sweep: SweepSpec, total_steps: int = _MANY) -> float:
    """Return the largest number of whole runs that differ from each other, beside compared trials that continue."""
    if sweep.algorithm != "auto" or rate_name(sweep) is None:
        return 0
    others = _others(sweep, total_steps)
    if extrapolates(sweep):
        return others + OTHER_RATES
    return others - (1 if rate_range(sweep) is None else 0)  # the best compared trial has the values of one of them


def plan_of_long_runs(sweep: SweepSpec) -> BudgetPlan:
    """Return the plan before the data is prepared, without a budget in tokens, for runs of many steps."""
    known = sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"tokens": None})})
    return budget_plan(known, _MANY, 1.0)


def runs_taken(sweep: SweepSpec, plan: BudgetPlan) -> float:
    """Return what a plan of `plan_of_long_runs` with halving takes, in whole runs of the base, without repeats."""
    return compared_steps(sweep, int(plan.compared), _MANY) / _MANY + plan.whole_runs


def most_gangs(sweep: SweepSpec) -> int:
    """Return the largest number of gangs at once, without regard to the machines.

    A budget in tokens is not considered: the tokens of a run are not known before the data is prepared.
    """
    plan = plan_of_long_runs(sweep)
    runs = math.ceil(min(plan.runs, MOST_TRIALS)) if sweep.scheduler != "halving" else MOST_TRIALS
    return max(1, int(min(sweep.num_gangs or _DEFAULT_MAX_GANGS, max(plan.compared, plan.whole_runs), runs)))
