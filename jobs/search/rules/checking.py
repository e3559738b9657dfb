"""Checks a sweep before anything is started, and completes the spec of a resume. Light to import."""

from __future__ import annotations

import json
import math
import time
from typing import Final

from cluster.errors import InputError, Mistake, SpecError
from cluster.text import many
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths
from jobs.run.resume import check_not_driven, differences
from jobs.search.rules.auto import brackets_rate
from jobs.search.rules.budget import check_budget, plan_of_long_runs, runs_taken
from jobs.search.rules.prior import check_has_use_for_prior, with_prior
from jobs.search.rules.untried import untried
from jobs.search.rules.varying import check_space, engines, field_meant, short_name
from jobs.spec.load import spec_of
from jobs.spec.space import Range
from jobs.spec.sweep import GRID_POINTS, MOST_TRIALS, Search, SweepSpec
from jobs.storage import files as storage

_DECAYS: Final = "warmup_stable_decay"  # the scheduler that uses decay_ratio
_FIXED: Final = ("metric", "mode", "algorithm", "scheduler", "rungs", "cooldown", "prior", "seed")


def check_sweep(sweep: SweepSpec) -> None:
    """Check space, prior and budget, without access to the sweep's storage. Raises SpecError with all mistakes."""
    problems = list[Mistake]()
    for check in (check_space, check_has_use_for_prior, check_budget):
        try:
            check(sweep)
        except SpecError as error:
            problems += error.mistakes
    if problems:
        raise SpecError.of(problems)


def check_search(search: Search) -> None:
    """Check a sweep, or each sweep of a comparison, as `check_sweep` does. Raises SpecError with all mistakes."""
    problems = dict[Mistake, None]()  # each once, also if several methods have it
    for sweep in search.sweeps:
        try:
            check_sweep(sweep)
        except SpecError as error:
            problems |= dict.fromkeys(error.mistakes)
    if problems:
        raise SpecError.of(problems)


def sweep_warnings(sweep: Search) -> list[str]:
    """Return what to say about settings of a sweep or comparison that have another effect than they seem to."""
    warnings = []
    if sweep.rungs and sweep.scheduler == "none":
        warnings.append("rungs has no effect with scheduler: none. Set scheduler: halving or asha, or leave rungs out")
    warnings += _about_space(sweep)
    warnings += _about_runtime(sweep)
    if isinstance(sweep, SweepSpec) and "budget" in sweep.model_fields_set:
        warnings += [] if sweep.budget.trials is None else _about_trials(sweep, sweep.budget.trials)
        warnings += _about_rest(sweep)
    elif sweep.algorithm == "grid" and sweep.grid_size > MOST_TRIALS:
        said = f"the grid has {sweep.grid_size:,} points, but a sweep begins at most {MOST_TRIALS:,} trials"
        warnings.append(f"{said}: give lists, or points for the ranges (the default is {GRID_POINTS})")
    return warnings


def _about_runtime(sweep: Search) -> list[str]:
    """Return a warning if the queue ends the search before its budget in minutes is used up."""
    minutes, longest_s = sweep.budget.minutes, sweep.queue.max_runtime_s
    needed_s = 60.0 * (minutes or 0.0) * len(sweep.sweeps)
    if longest_s is None or longest_s >= needed_s:
        return []
    what, each = ("sweep", "") if isinstance(sweep, SweepSpec) else ("comparison", " for each method")
    said = f"queue.max_runtime_s ({longest_s:g}) ends the {what} before budget.minutes ({minutes:g}{each}) are used up"
    return [f"{said}, without an export of the best model. Give at least {needed_s:g}"]


def _about_space(sweep: Search) -> list[str]:
    """Return what to say about parts of the space without effect."""
    warnings, meant = [], {field_meant(name): values for name, values in sweep.dimensions.items()}
    schedulers = meant.get("train.lr_scheduler_type", (sweep.base.train.lr_scheduler_type,))
    if "train.decay_ratio" in meant and isinstance(schedulers, tuple) and _DECAYS not in schedulers:
        used = ", ".join(map(str, schedulers))
        warnings.append(f"space.decay_ratio has no effect with lr_scheduler_type: {used}. It is for {_DECAYS}")
    for name, values in sweep.space.items():
        if isinstance(values, Range) and values.points is not None and sweep.algorithm != "grid":
            warnings.append(f"space.{name}.points has no effect with algorithm: {sweep.algorithm}. It is for grid")
    return warnings


def _about_rest(sweep: SweepSpec) -> list[str]:
    """Return a warning if a search of `auto` ends before its budget in trials or runs is used up."""
    plan, budget = plan_of_long_runs(sweep), sweep.budget
    if not brackets_rate(sweep) or math.isinf(plan.compared):
        return []
    taken = (
        f"{int(plan.compared)} rates and {many(plan.whole_runs, 'whole run')}, since further ones would hardly differ"
    )
    if sweep.scheduler != "halving":
        taken = f"{int(plan.compared)} trials, since further rates would hardly differ"
    if budget.trials is not None and plan.compared + plan.whole_runs < budget.trials:
        return [f"budget.trials is {budget.trials:,}, but auto tries at most {taken}"]
    runs = runs_taken(sweep, plan) if sweep.scheduler == "halving" else plan.compared
    if budget.runs is not None and budget.trials is None and budget.runs - runs >= 1:
        return [f"budget.runs is {budget.runs:g}, but auto takes at most {runs:.1f} runs: {taken}"]
    return []


def _about_trials(sweep: SweepSpec, trials: int) -> list[str]:
    said = f"budget.trials is {trials:,}, but the "
    if sweep.algorithm == "grid" and trials < sweep.grid_size:
        first = short_name([*engines(sweep)[0], *sweep.dimensions][0])
        left_out = f"the last ones, with the last values of {first}, are left out"
        return [f"{said}grid has {sweep.grid_size:,} points: {left_out}"]
    few = untried(sweep, ()) if sweep.algorithm not in ("auto", "grid") else None
    if few is not None and trials > len(few):
        return [f"{said}lists of the space have {len(few):,} combinations, each of which is tried once"]
    return []


def checked_sweep(sweep: SweepSpec) -> tuple[SweepSpec, str | None]:
    """Check a sweep, and return it with its prior and the source of the prior's learning rate (see `with_prior`).

    Raises:
        SpecError: all mistakes in space and budget, one a line; or a mistake in the prior.
    """
    check_sweep(sweep)
    found, source = with_prior(sweep)
    check_space(found)  # again, because the default space depends on the prior
    return found, source


def stored_sweep(paths: JobPaths) -> SweepSpec:
    """Read the spec in a sweep's directory, without a prior that has no effect, which earlier releases accepted.

    Raises StorageError: it cannot be read; InputError: it is not a sweep.
    """
    spec = spec_of(json.loads(storage.read_bytes(paths.spec)))
    if not isinstance(spec, SweepSpec):
        raise InputError(f"{paths.root} is not a sweep")
    return spec if spec.algorithm == "auto" else spec.model_copy(update={"prior": {}})


def with_stored_values(sweep: SweepSpec, paths: JobPaths, *, by_hand: bool = True) -> SweepSpec:
    """Fill in space and prior from the stored spec of a sweep if the given spec leaves them out.

    Args:
        by_hand: a user resumes the sweep. A queue (False) submits the original spec, so the stored one is used, which
            may have been changed while the sweep ran.
    """
    before = stored_sweep(paths)
    if not by_hand:
        return before
    known = {field_meant(name): value for name, value in before.prior.items()}
    same = all(known.get(field_meant(name)) == value for name, value in sweep.prior.items())
    same = same and sweep.algorithm == before.algorithm
    update = {"space": sweep.space or before.space, "prior": before.prior if same else sweep.prior}
    return sweep.model_copy(update=update)


def check_sweep_resumable(paths: JobPaths, now: SweepSpec, *, alone: bool = False) -> None:
    """Raise SpecError if the spec is of another search, or InputError if the sweep still has a driver.

    Args:
        alone: the caller knows that the sweep has no driver any more.
    """
    before = stored_sweep(paths)
    if read_outcome(paths) is None and not alone:
        check_not_driven(paths, time.time())
    check_same_search(before, now)


def check_same_search(before: SweepSpec, now: SweepSpec) -> None:
    """Raise SpecError if trials of the two specs could not be compared."""
    changed = [f"base.{line}" for line in differences(before.base, now.base)]
    if before.algorithm == "grid" and list(before.space.items()) != list(now.space.items()):
        changed.append("space: the trials of a grid are numbered by it, in its order")
    if only_one := set(before.dimensions) ^ set(now.dimensions):
        changed.append(f"space: only one of the two specs has {', '.join(sorted(only_one))}")
    for name in before.dimensions.keys() & now.dimensions.keys():
        if isinstance(before.dimensions[name], tuple) != isinstance(now.dimensions[name], tuple):
            changed.append(f"space.{name}: a range cannot become a list, nor a list a range")
    for name in _FIXED:
        if (old := getattr(before, name)) != (new := getattr(now, name)):
            changed.append(f"{name}: {old} -> {new}")
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise SpecError(
            "the sweep cannot be resumed with this spec, because its trials could not be compared (before -> now):\n"
            f"{lines}\nThe budget, seeds, num_gangs, then, checkpoints_gb and the ends of ranges may change. Take "
            "these back, or start a new sweep"
        )
