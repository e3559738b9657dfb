"""Changes of a running sweep: a larger budget, or another range.

A command leaves each change as a file in the sweep's directory. The driver applies it and removes the file.

Light to import.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from cluster.errors import InputError, SpecError
from jobs.frozen import Frozen
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths
from jobs.run.resume import check_not_driven
from jobs.search.rules.budget import check_budget
from jobs.search.rules.checking import check_same_search, stored_sweep
from jobs.search.rules.untried import untried
from jobs.search.rules.varying import check_space, field_meant
from jobs.search.trials import Trials
from jobs.spec.checking.overrides import override_value
from jobs.spec.load import spec_of
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.training.mailbox import MessageFolder

_CHANGES = "changes"


class Change(Frozen):
    """A change of a sweep that a user has asked for."""

    more: dict[str, float] = Field(default_factory=dict, description="What is added to parts of the budget, by name.")
    space: dict[str, JsonValue] = Field(
        default_factory=dict, description="Dimensions by their names in the space: a whole one, or parts of a range."
    )

    def __str__(self) -> str:
        """Return the changes as `budget.trials +3, learning_rate max 0.0005`."""
        added = [f"budget.{name} +{value:,.10g}" for name, value in self.more.items()]
        return ", ".join([*added, *(f"{name} {_format_dimension(value)}" for name, value in self.space.items())])


def _format_dimension(value: JsonValue) -> str:
    return " ".join(f"{part} {end}" for part, end in value.items()) if isinstance(value, dict) else f"{value}"


def changed(sweep: SweepSpec, change: Change) -> SweepSpec:
    """Return the sweep with a change. Pure.

    Raises:
        SpecError: the new spec is wrong, or new trials could not be compared with earlier ones.
    """
    raw = sweep.model_copy(update={"space": sweep.dimensions}).model_dump(mode="json")
    for name, added in change.more.items():
        before = raw["budget"][name]
        raw["budget"][name] = before + (round(added) if isinstance(before, int) else added)
    for name, value in change.space.items():
        known = raw["space"].get(name)
        raw["space"][name] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
    now = spec_of(raw)
    assert isinstance(now, SweepSpec)
    check_same_search(sweep, now)
    check_space(now)
    check_budget(now)
    return now


def narrower(sweep: SweepSpec, settings: list[str]) -> Change:
    """Return the change that settings such as `learning_rate.max=5e-4` describe.

    Raises:
        SpecError: a setting names no dimension of the space, or no part of a range, or is NaN or infinite.
    """
    space: dict[str, Any] = {}
    for setting in settings:
        key, value = override_value(setting.removeprefix("space."))
        home, _, part = key.rpartition(".")
        if (name := _dimension(sweep, key)) is not None:
            space[name] = value
        elif part in ("min", "max", "log", "points") and (name := _dimension(sweep, home)) is not None:
            if not isinstance(before := space.get(name, {}), dict):
                raise SpecError(f"--set {setting}: an earlier --set gives {name} as {before!r}, which has no {part}")
            space[name] = {**before, part: value}
        else:
            raise SpecError(f"--set {setting}: the space has {', '.join(sweep.dimensions)}; of a range, min and max")
    try:
        return Change(space=space)
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"space.{first['loc'][1]}: must be a finite number, but is {first['input']}") from error


def _dimension(sweep: SweepSpec, given: str) -> str | None:
    """Return the name of a field in the space; None if the space does not have it."""
    try:
        full = field_meant(given)
    except SpecError:
        return None
    return next((name for name in sweep.dimensions if field_meant(name) == full), None)


def larger(trials: Trials, asked: Mapping[str, float | None]) -> Change:
    """Return the change that adds to the budget of a sweep.

    Args:
        asked: amounts to add, by the names of the budget's fields. Tokens are converted into runs, and runs into
            tokens, if the budget has only the other one.

    Raises:
        SpecError: no amount is given, one is not above 0, the budget does not have the field, or lists leave nothing
            to try.
    """
    if trials.sweep.algorithm != "auto" and untried(trials.sweep, trials.searched, None, trials.total_steps) == []:
        said = "every combination of the lists has been tried, so a larger budget would begin no trial"
        what_to_do = "start" if trials.sweep.algorithm == "grid" else "give the lists more values, or start"
        raise SpecError(f"{said}: {what_to_do} a new sweep")
    budget, more = trials.sweep.budget, {name: value for name, value in asked.items() if value is not None}
    for name, value in more.items():
        if value <= 0:
            raise SpecError(f"--{name.replace('_', '-')} must be more than 0, but is {value:g}: a budget only grows")
    if (per_run := trials.tokens_per_run) and (budget.runs is None) != (budget.tokens is None):
        if "tokens" in more and budget.tokens is None:
            more["runs"] = more.get("runs", 0.0) + more.pop("tokens") / per_run
        if "runs" in more and budget.runs is None:
            more["tokens"] = more.get("tokens", 0.0) + more.pop("runs") * per_run
    if not more:
        raise SpecError("say what to add: --runs, --trials, --tokens, --minutes or --gpu-hours")
    for name in more:
        if getattr(budget, name) is None:
            bounds = ", ".join(f"{one} ({value:,})" for one, value in budget.model_dump(exclude_none=True).items())
            raise SpecError(f"the budget of this sweep has no {name}: it has {bounds}. Add to that")
    return Change(more=more)


def is_driven(paths: JobPaths) -> bool:
    """Return whether the sweep has a driver now."""
    if read_outcome(paths) is not None:
        return False
    try:
        check_not_driven(paths, time.time())
    except InputError:
        return True
    return False


class Changes:
    """The changes that users have asked for and that the driver has not applied yet. Each one is a file."""

    def __init__(self, paths: JobPaths) -> None:
        self._paths, self._folder = paths, MessageFolder(storage.join(paths.root, _CHANGES), Change)

    def ask(self, change: Change) -> None:
        """Ask the driver for a change. Raises SpecError: the change is impossible after those that wait already."""
        sweep = stored_sweep(self._paths)
        for _, before in self.waiting():
            sweep = changed(sweep, before)
        changed(sweep, change)
        self._folder.put(f"{time.time_ns():020d}", change)

    def waiting(self) -> Iterator[tuple[str, Change]]:
        """Yield each waiting change with its name, the oldest first. Raises StorageError."""
        for name in self._folder.names():
            yield name, self._folder.read(name)

    def done_with(self, name: str) -> None:
        """Remove a change that was applied or refused."""
        self._folder.remove(name)
