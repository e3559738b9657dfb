"""The values that a search has not tried, where lists leave few of them. Pure.

The same values would give the same result, to the last digit.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.search.rules.auto import fixed_values
from jobs.search.trial import Trial
from jobs.spec.sweep import SweepSpec

_MOST_LISTED: Final = 2_000  # of more combinations, hardly any is proposed twice


def untried(
    sweep: SweepSpec, trials: Sequence[Trial], best: Mapping[str, Any] | None = None
) -> list[dict[str, Any]] | None:
    """Return the values that a new trial may have; None if a range or long lists give more than can be tried.

    Args:
        trials: all trials except repeats.
        best: values of the best trial, for a whole run of `auto`; None for a compared trial.
    """
    fixed = fixed_values(sweep, best) if sweep.algorithm == "auto" else {}
    choices = [(fixed[name],) if name in fixed else values for name, values in sweep.dimensions.items()]
    lists = [values for values in choices if isinstance(values, tuple)]
    if len(lists) < len(choices) or math.prod(map(len, lists)) > _MOST_LISTED:
        return None
    tried = tried_keys(trials, is_whole=best is not None)
    every = (dict(zip(sweep.dimensions, chosen, strict=True)) for chosen in itertools.product(*lists))
    return [values for values in every if key_of(values) not in tried]


def tried_keys(trials: Sequence[Trial], is_whole: bool) -> set[str]:
    """Return `key_of` the values that have been tried in whole runs, or in compared trials."""
    if not is_whole:
        return {key_of(trial.values) for trial in trials if not trial.without_rungs}
    # A compared trial that was trained to its end was a whole run too.
    return {key_of(trial.values) for trial in trials if trial.without_rungs or trial.state == "finished"}


def key_of(values: Mapping[str, Any]) -> str:
    """Return a text that is the same for the same values."""
    same = {name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for name, value in values.items()}  # fmt: skip
    return json.dumps(same, sort_keys=True)
