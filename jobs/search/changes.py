"""Changes of a sweep on the way: a larger budget, another range. Asked for by files, carried out by the driver.

Light to import.
"""

from __future__ import annotations

import time

from pydantic import Field

from jobs import storage
from jobs.errors import InputError, SpecError
from jobs.frozen import Frozen
from jobs.load import load_sweep
from jobs.outcome import read_outcome
from jobs.paths import JobPaths
from jobs.resume import check_not_driven
from jobs.search.budget import check_budget
from jobs.search.ledger import Trials
from jobs.search.mailbox import Tray
from jobs.search.resuming import check_same_search
from jobs.search.spec import SweepSpec
from jobs.search.varying import check_space

_CHANGES = "changes"


class Change(Frozen):
    """What somebody wants changed."""

    settings: tuple[str, ...] = Field(min_length=1, description="As for --set: budget.trials=24.")


def changed(paths: JobPaths, settings: tuple[str, ...]) -> SweepSpec:
    """The spec of a sweep, with these settings.

    Raises:
        SpecError: a setting is wrong, or the trials would no longer compare.
        InputError: there is no sweep.
    """
    before, now = load_sweep(paths.spec), load_sweep(paths.spec, settings)
    if before is None or now is None:
        raise InputError(f"{paths.root} is no sweep")
    check_same_search(paths, before, now)
    check_space(now)
    check_budget(now)
    return now


def ask_to_change(paths: JobPaths, settings: tuple[str, ...]) -> None:
    """Have the driver of a sweep take over these settings. Raises SpecError, InputError: see `changed`."""
    changed(paths, settings)
    Tray(storage.join(paths.root, _CHANGES)).put(f"{time.time_ns():020d}", Change(settings=settings))


def is_driven(paths: JobPaths) -> bool:
    """Whether somebody drives the sweep, so that it may be asked to change."""
    if read_outcome(paths) is not None:
        return False
    try:
        check_not_driven(paths, time.time())
    except InputError:
        return True
    return False


class Changes:
    """The changes that a sweep was asked for and has not taken over yet."""

    def __init__(self, paths: JobPaths) -> None:
        self._paths, self._root = paths, storage.join(paths.root, _CHANGES)

    def any(self) -> bool:
        return bool(Tray(self._root).names())

    def take(self) -> list[tuple[str, SweepSpec | None]]:
        """Take over what was asked for since the last look: it stands in the sweep's spec when this returns.

        Returns:
            For each change its words, and the new spec; in the place of a spec None where the change is impossible
            by now, with the reason in the words.
        """
        tray, taken = Tray(self._root), list[tuple[str, SweepSpec | None]]()
        for name in tray.names():
            settings = tray.read(name, Change).settings
            said = ", ".join(settings)
            try:
                now = changed(self._paths, settings)
                storage.write_bytes(self._paths.spec, now.model_dump_json(indent=1).encode())
                taken.append((said, now))
            except SpecError as error:
                taken.append((f"{said}: {error}", None))
            storage.remove_file(storage.join(self._root, f"{name}.json"))
        return taken


def more(
    trials: Trials, *, runs: float | None, count: int | None, tokens: int | None, minutes: float | None
) -> tuple[str, ...]:
    """The settings that add to the budget of a sweep.

    Args:
        runs, count, tokens, minutes: what is added; count: of trials.

    Raises:
        SpecError: the budget does not count that.
    """
    budget, found, per_run = trials.sweep.budget, dict[str, float](), trials.tokens_per_run
    if tokens is not None and budget.tokens is None and per_run:
        runs, tokens = (runs or 0.0) + tokens / per_run, None
    elif runs is not None and budget.runs is None and budget.tokens is not None and per_run:
        tokens = (tokens or 0) + round(runs * per_run)
        runs = None
    for name, added in (("runs", runs), ("trials", count), ("tokens", tokens), ("minutes", minutes)):
        if added is None:
            continue
        if (before := getattr(budget, name)) is None:
            bounds = ", ".join(f"{one} {value:,}" for one, value in budget.model_dump(exclude_none=True).items())
            raise SpecError(f"the budget of {trials.root} bounds no {name}, but {bounds}: add to that")
        found[name] = before + added
    if not found:
        raise SpecError("say what to add: --runs, --trials, --tokens or --minutes")
    return tuple(f"budget.{name}={value:.10g}" for name, value in found.items())
