"""The values that a search has not tried, where lists leave few of them. Pure.

The same training would give the same result, to the last digit. So values that differ only in shares of a run count as
the same if they are the same number of optimizer steps.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.search.rules.auto import fixed_values
from jobs.search.rules.varying import ENGINE, field_meant, is_weight
from jobs.search.trial import Trial
from jobs.spec.space import Range
from jobs.spec.sweep import GRID_POINTS, SweepSpec

_MOST_LISTED: Final = 2_000  # of more combinations, hardly any is proposed twice
_MOST_STEPS: Final = 64  # of a longer warmup, hardly any is proposed twice
# Fields that are shares of a run, of which a trial takes the number of optimizer steps, rounded up. A warmup in steps
# is a share if it is below 1.
_SHARES: Final = frozenset({"train.warmup_ratio", "train.warmup_steps", "train.decay_ratio"})


def untried(
    sweep: SweepSpec, trials: Sequence[Trial], best: Mapping[str, Any] | None = None, total_steps: int = 0
) -> list[dict[str, Any]] | None:
    """Return the values that a new trial may have; None if a range or long lists give more than can be tried.

    Args:
        trials: all trials except repeats.
        best: values of the best trial, for a trial of `auto` at its rate; None for a compared trial.
        total_steps: optimizer steps of a run; 0: not known.
    """
    fixed = fixed_values(sweep, best) if sweep.algorithm == "auto" else {}
    dimensions = listed(sweep, total_steps)
    choices = [(fixed[name],) if name in fixed else values for name, values in dimensions.items()]
    lists = [values for values in choices if isinstance(values, tuple)]
    if len(lists) < len(choices) or math.prod(map(len, lists)) > _MOST_LISTED:
        return None
    tried = tried_keys(sweep, trials, best is not None, total_steps)
    steps = _steps_of_shares(sweep, total_steps)
    every = (dict(zip(dimensions, chosen, strict=True)) for chosen in itertools.product(*lists))
    return [values for values in every if _key_of(values, steps) not in tried]


def listed(sweep: SweepSpec, total_steps: int = 0) -> dict[str, Range | tuple[Any, ...]]:
    """Return the dimensions, where each value of a list is another training. A range of few such values is a list here.

    These are the ranges of a grid, and shares of a short run.
    """
    found, steps = dict[str, Range | tuple[Any, ...]](), _steps_of_shares(sweep, total_steps)
    for name, values in sweep.dimensions.items():
        counted, given = steps.get(name, 0), values
        if isinstance(values, Range) and sweep.algorithm == "grid":
            given = values.values(values.points or GRID_POINTS)
        elif isinstance(values, Range) and counted and _steps_in(values, counted) <= _MOST_STEPS:
            given = _one_for_each_step(values, counted)
        if isinstance(given, tuple) and counted:
            first = dict[Any, Any]()
            for value in given:
                first.setdefault(_key(name, value, counted), value)
            given = tuple(first.values())
        found[name] = given
    return found


def _steps_in(shares: Range, total_steps: int) -> int:
    return math.ceil(total_steps * shares.max) - math.ceil(total_steps * shares.min) + 1


def _one_for_each_step(shares: Range, total_steps: int) -> tuple[float, ...]:
    """Return a share for each number of steps in the range."""
    least = math.ceil(total_steps * shares.min)
    more = range(least + 1, least + _steps_in(shares, total_steps))
    # Half a step less than the number: the product is not rounded up to the next one.
    return (shares.min, *(min((steps - 0.5) / total_steps, shares.max) for steps in more))


def _steps_of_shares(sweep: SweepSpec, total_steps: int) -> dict[str, int]:
    """Return the optimizer steps of a run for each dimension that is a share; empty if trials differ in their steps."""
    meant = {name: field_meant(name) for name in sweep.dimensions}
    if not total_steps or any(field in ENGINE or is_weight(field) for field in meant.values()):
        return {}
    return {name: total_steps for name, field in meant.items() if field in _SHARES}


def tried_keys(sweep: SweepSpec, trials: Sequence[Trial], at_best_rate: bool, total_steps: int = 0) -> set[str]:
    """Return `key_of` the values that have been tried in whole runs of `auto`, or in compared trials.

    Args:
        at_best_rate: the next trial has the rate of the best one. With halving, it is a whole run.
    """
    found = [trial for trial in trials if not trial.without_rungs]
    if at_best_rate and sweep.scheduler == "halving":
        # A compared trial that was trained to its end was a whole run too.
        found = [trial for trial in trials if trial.without_rungs or trial.state == "finished"]
    steps = _steps_of_shares(sweep, total_steps)
    return {_key_of(trial.values, steps) for trial in found}


def key_of(sweep: SweepSpec, values: Mapping[str, Any], total_steps: int = 0) -> str:
    """Return a text that is the same for values of the same training. `total_steps`: as for `untried`."""
    return _key_of(values, _steps_of_shares(sweep, total_steps))


def _key_of(values: Mapping[str, Any], steps: Mapping[str, int]) -> str:
    return json.dumps({name: _key(name, value, steps.get(name, 0)) for name, value in values.items()}, sort_keys=True)


def _key(name: str, value: Any, total_steps: int) -> Any:
    """Return what a value is in training. `total_steps`: of a run if the value may be a share of it, else 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    is_share = total_steps and (value < 1 or name.endswith("_ratio"))  # 1.0 of `warmup_steps` is one step
    return float(math.ceil(total_steps * value) if is_share else value)
