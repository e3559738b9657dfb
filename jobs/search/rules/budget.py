"""Computes how many trials a budget pays for, and what kind may begin next. Pure; light to import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.errors import SpecError
from jobs.search.rules.auto import aims, rate_name
from jobs.search.rules.rungs import ETA, cooldown_of, halving_steps, stops_of
from jobs.search.rules.varying import engines, field_meant, is_weight, trial_spec, tried
from jobs.spec.finetune import Spec
from jobs.spec.space import Range
from jobs.spec.sweep import MOST_TRIALS, Budget, SweepSpec

_RUNS_PER_WHOLE_RUN = 3  # auto: one whole run without a comparison for this many runs of the budget
_MOST_STRAIGHT = 16
_DEFAULT_MAX_GANGS = 8  # at once, if num_gangs is left out
_USUAL_COMPARED = 6  # by auto, before one whole run
_MANY = 1000  # trials, or steps: enough that rounding does not matter


class Begun(Protocol):
    """The facts of a trial on which these rules depend."""

    @property
    def straight(self) -> bool: ...

    @property
    def state(self) -> str: ...

    @property
    def scores(self) -> Sequence[object]: ...


@dataclass(frozen=True)
class BudgetPlan:
    """The numbers of trials that a sweep begins.

    Attributes:
        compared: most trials that are compared at rungs. Without rungs: most trials.
        straight: most whole runs without a comparison; they begin after the others.
        first_share: once this share of the time is used, no more trials are begun for comparison.
        aims: a compared trial that continues counts as a whole run; see `jobs.search.rules.auto.aims`.
    """

    compared: float = math.inf
    straight: int = 0
    first_share: float = 1.0
    aims: bool = False


# "repeat": a finalist with another seed. "stopped": the sweep was asked to stop.
Next = Literal["compared", "straight", "repeat", "wait", "done", "stopped"]


def budget_plan(
    sweep: SweepSpec, stops: Sequence[int], cooldown: int, tokens_per_run: float, probe_steps: float = 0.0
) -> BudgetPlan:
    """Decide how many trials of each kind the budget pays for.

    Args:
        stops: steps at which a trial is scored, and the last one.
        cooldown: optimizer steps of a cool-down.
        tokens_per_run: tokens of one whole run of the base.
        probe_steps: cost of the probe. It leaves at least one trial.
    """
    budget, total = sweep.budget, stops[-1]
    most = most_trials(sweep)
    if sweep.scheduler != "halving":
        return BudgetPlan(most)
    runs = runs_of(budget, tokens_per_run)
    aimed = aims(sweep)
    straight = int(min(runs, most, _MOST_STRAIGHT * _RUNS_PER_WHOLE_RUN) // _RUNS_PER_WHOLE_RUN)
    straight = int(min(max(straight, int(aimed)), most_straight(sweep)))
    compared = most - straight
    if runs < math.inf:
        left = (runs - straight) * total - probe_steps
        compared = min(compared, max(_trials_within(sweep, left, stops, cooldown), 1))
    usual = _USUAL_COMPARED if aimed else _MANY
    usual_steps = compared_steps(sweep, usual, stops, cooldown) + (total if aimed else 0)
    return BudgetPlan(compared, straight, usual * (stops[0] + cooldown) / usual_steps, aimed)


def most_trials(sweep: SweepSpec) -> float:
    """Return the largest number of trials, without repeats; infinite if only other limits bound it."""
    return min(sweep.budget.trials or math.inf, sweep.grid_size if sweep.algorithm == "grid" else math.inf)


def compared_steps(sweep: SweepSpec, trials: int, stops: Sequence[int], cooldown: int) -> int:
    """Return the optimizer steps of `trials` compared trials, without whole runs.

    Args:
        stops: steps of the rungs, and the last step.
        cooldown: optimizer steps of a cool-down.
    """
    if aims(sweep):
        return trials * (stops[0] + cooldown)
    return halving_steps(trials, stops, ETA, cooldown)


def _trials_within(sweep: SweepSpec, steps: float, stops: Sequence[int], cooldown: int) -> int:
    """Return the largest number of compared trials that fits into `steps` optimizer steps."""
    trials = 0
    while compared_steps(sweep, trials + 1, stops, cooldown) <= steps:
        trials += 1
    return trials


def runs_of(budget: Budget, tokens_per_run: float) -> float:
    """Return the whole runs that the budget pays for; infinite if neither `runs` nor `tokens` is set."""
    return min(budget.runs or math.inf, (budget.tokens or math.inf) / tokens_per_run)


def check_budget(sweep: SweepSpec) -> None:
    """Raises SpecError if a budget in runs does not pay for one trial. `Shares.of` checks a budget in tokens."""
    if (wrong := too_little(sweep, _MANY, sweep.budget.runs or math.inf)) is not None:
        raise SpecError.at("budget", wrong)


def too_little(sweep: SweepSpec, total_steps: int, runs: float) -> str | None:
    """The message for `budget` if its `runs` whole runs do not pay for one trial; None if they do."""
    if sweep.scheduler != "halving":
        return None
    stops, cooldown = stops_of(sweep, total_steps), cooldown_of(sweep, total_steps)
    needed = (compared_steps(sweep, 1, stops, cooldown) + (total_steps if aims(sweep) else 0)) / total_steps
    if runs >= needed:
        return None
    return (
        f"it pays for {runs:.2g} runs, but one trial with its cool-downs takes {needed:.2g}: give more, fewer "
        "rungs, or scheduler: none"
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
        each = [{**engine, name: value} for name in others for value in tried(sweep.dimensions[name])]
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
    trials: Sequence[Begun], plan: BudgetPlan, used: float, any_goes_on: bool, to_repeat: bool = False
) -> Next:
    """Decide what kind of trial may begin now.

    Args:
        trials: all trials except repeats.
        used: the used share of the limit that is nearest to its end: minutes, GPU-hours and, without halving, tokens.
            With halving, `plan` limits the tokens.
        any_goes_on: whether a trial that is paused at a rung continues.
        to_repeat: whether a finalist has fewer seeds than the sweep asks for.
    """
    straight, whole = sum(trial.straight for trial in trials), _whole_runs(trials, plan)
    if used < plan.first_share and len(trials) - straight < plan.compared:
        return "compared"
    unfinished = [trial for trial in trials if _is_unfinished(trial)]
    if any_goes_on or any(not trial.straight for trial in unfinished):
        return "wait"
    if whole < plan.straight and (used < 1 or (plan.aims and whole == 0)):
        return "straight"
    if unfinished:
        return "wait"
    return "repeat" if to_repeat else "done"


def _whole_runs(trials: Sequence[Begun], plan: BudgetPlan) -> int:
    """Count the whole runs that have begun."""
    gone_on = sum(len(trial.scores) > 1 for trial in trials if not trial.straight)
    return sum(trial.straight for trial in trials) + (gone_on if plan.aims else 0)


def _is_unfinished(trial: Begun) -> bool:
    """Whether the trial is being trained, or waits for a gang.

    A paused trial without a score has not reached its rung (it was interrupted, or the rung was moved), so it waits.
    """
    return trial.state in ("waiting", "running") or (trial.state == "paused" and not trial.scores)


def most_to_train(trials: Sequence[Begun], plan: BudgetPlan, kind: Next, going_on: int, repeats: int) -> float:
    """Return how many trials will be trained at once from now on, at most: no more gangs are of use.

    Args:
        trials: all trials except repeats.
        kind: of trial that may begin now.
        going_on: number of trials that are paused at a rung and continue.
        repeats: number of repeats that have not ended, or are still to begin.
    """
    if kind == "compared":
        return math.inf
    compared = [trial for trial in trials if not trial.straight]
    trained = sum(_is_unfinished(trial) for trial in trials)
    whole = _whole_runs(trials, plan)
    later = max(plan.straight - whole, 0)
    if plan.aims:
        later = max(later, going_on)
    elif going_on or any(_is_unfinished(trial) for trial in compared):
        later += sum(trial.state == "paused" and bool(trial.scores) for trial in compared)
    return max(trained + later, repeats)


def most_straight(sweep: SweepSpec) -> float:
    """Return the largest number of whole runs that differ from each other."""
    name = rate_name(sweep)
    if sweep.algorithm != "auto" or name is None:
        return 0
    if len(sweep.dimensions) > 1 or aims(sweep):
        return math.inf
    return 1 if isinstance(sweep.dimensions[name], Range) else 0


def most_gangs(sweep: SweepSpec) -> int:
    """Most gangs at once. With more of them, more trials begin before the results of others are known.

    A budget in tokens is not considered: the tokens of a run are not known before the data is prepared.
    """
    known = sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"tokens": None})})
    plan = budget_plan(known, stops_of(known, _MANY), cooldown_of(known, _MANY), 1.0)
    runs = math.ceil(min(known.budget.runs or math.inf, MOST_TRIALS)) if known.scheduler != "halving" else MOST_TRIALS
    return max(1, int(min(known.num_gangs or _DEFAULT_MAX_GANGS, plan.compared, runs)))
