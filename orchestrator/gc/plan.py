"""The plan of `fleetune gc`: what to remove. Pure: no clock, no disk, no network.

There are two bounds: an age, and a total size. Everything older than the age is removed. If the rest is still too
large, more is removed until it fits, in this order, oldest first:

1. unused prepared data (if requested), which can be prepared again;
2. checkpoints of succeeded runs, whose models are kept;
3. checkpoints of other runs, whose logs are kept;
4. whole runs.

The model that a remaining run needs as its base is kept.

Without a bound, nothing is removed. With a bound, the rest of an interrupted removal is removed too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from orchestrator.gc.values import (
    Bounds,
    Found,
    GcPlan,
    Held,
    PreparedFacts,
    PreparedVerdict,
    RunFacts,
    RunVerdict,
    ToRemove,
)

ALIVE_S: Final = 86_400.0  # seconds; runs and data that were written to more recently are kept
SLACK_S: Final = 600.0  # seconds in which a run may write after its outcome; includes differences of clocks


def plan_gc(found: Found, bounds: Bounds, now_s: float, held: Held | None = None) -> GcPlan:
    """Decide what to remove, with reasons."""
    runs = tuple(sorted(found.runs, key=lambda run: (run.since_s, run.name)))
    stay = reasons_to_stay(runs, bounds, now_s, held or Held())
    taken, shared = _Taken(found, stay), _Shared(found, runs, bounds, now_s)
    if bounds.older_than_s is not None:
        _by_age(taken, runs, shared, bounds, now_s - bounds.older_than_s)
    if bounds.most_size is not None:
        _by_size(taken, runs, shared, bounds)
    kept = {**stay.models, **stay.wholly}
    return GcPlan(
        tuple(RunVerdict(run, *taken.runs.get(run.name, (ToRemove.NOTHING, kept.get(run.name, "")))) for run in runs),
        tuple(_prepared_verdict(one, taken, shared) for one in shared.every),
        found.leftovers if bounds.any else (),
        found.size,
        bounds.most_size,
    )


def reasons_to_stay(runs: tuple[RunFacts, ...], bounds: Bounds, now_s: float, held: Held) -> Held:
    """Return the runs to keep, wholly or without checkpoints, with reasons. `runs`: oldest first."""
    alive = {run.name: why for run in runs if (why := why_alive(run, now_s))}
    last = runs[-bounds.keep_last :] if bounds.keep_last else ()
    models = {run.starts_from: f"{run.name} starts from it" for run in runs if run.starts_from and run.name in alive}
    return Held(
        {**{run.name: f"one of the last {bounds.keep_last}" for run in last}, **held.wholly, **alive},
        {**models, **held.models},
    )


def why_alive(run: RunFacts, now_s: float) -> str | None:
    """Return why a run may still be in use; None: it is not."""
    silent_s = now_s - max(run.since_s, run.touched_s)
    if run.status == "running":
        return "running"
    if run.status == "unreadable":
        return "its outcome cannot be read"
    if not run.ended and silent_s < ALIVE_S:
        return "not ended, and written to within the last day"
    if run.ended and run.touched_s > run.since_s + SLACK_S and silent_s < ALIVE_S:
        return "written to within the last day, after its end"
    return None


class _Taken:
    """The decisions so far, and the bytes that remain."""

    def __init__(self, found: Found, stay: Held) -> None:
        self._stay = stay
        self._started: dict[str, list[str]] = {}  # by name of a run: the runs that need its model
        for run in found.runs:
            if run.starts_from is not None and run.needs_base:
                self._started.setdefault(run.starts_from, []).append(run.name)
        self.left = found.size - sum(one.size for one in found.leftovers)
        self.runs: dict[str, tuple[ToRemove, str]] = {}
        self.prepared: dict[str, str] = {}

    def take(self, run: RunFacts, part: ToRemove, why: str) -> None:
        """Decide to remove a part of a run, or the part of it that may be removed, if nothing larger was decided."""
        before = self.runs.get(run.name, (ToRemove.NOTHING, ""))[0]
        if run.name in self._stay.wholly or before is ToRemove.RUN:
            return
        if part is ToRemove.RUN and run.name in self._stay.models:
            part, why = ToRemove.CHECKPOINTS, f"{why}; the rest is kept: {self._stay.models[run.name]}"
        if part is ToRemove.RUN and (
            user := next((one for one in self._started.get(run.name, ()) if not self.is_gone(one)), None)
        ):
            part, why = ToRemove.CHECKPOINTS, f"{why}; the rest is kept: {user} starts from it"
        if part is ToRemove.CHECKPOINTS and (before is part or not run.checkpoint_size):
            return
        self.left -= run.size_of(part) - run.size_of(before)
        self.runs[run.name] = (part, why)

    def take_prepared(self, one: PreparedFacts, why: str) -> None:
        if one.name not in self.prepared:
            self.left -= one.size
            self.prepared[one.name] = why

    def passes(self) -> Iterator[None]:
        """Yield until a pass over the runs removes none: a base can go only after all those that start from it."""
        before = -1
        while (gone := sum(part is ToRemove.RUN for part, _ in self.runs.values())) > before:
            before = gone
            yield

    def is_gone(self, run: str) -> bool:
        return self.runs.get(run, (ToRemove.NOTHING, ""))[0] is ToRemove.RUN


class _Shared:
    """Prepared data, oldest first, and the runs that use it."""

    def __init__(self, found: Found, runs: tuple[RunFacts, ...], bounds: Bounds, now_s: float) -> None:
        self.every = tuple(sorted(found.prepared, key=lambda one: (one.touched_s, one.name)))
        self._asked_for, self._now_s = bounds.prepared, now_s
        parts = {one.name: one.sources for one in found.prepared}
        self.touched_s = {one.name: one.touched_s for one in found.prepared}
        for one in found.prepared:  # a source counts as used as recently as the data that refers to it
            for source in one.sources & self.touched_s.keys():
                self.touched_s[source] = max(self.touched_s[source], one.touched_s)
        self._users: dict[str, list[str]] = {}  # run names, oldest first
        self._used_by: dict[str, list[PreparedFacts]] = {}
        by_name = {one.name: one for one in found.prepared}
        for run in runs:
            for name in sorted(run.prepared.union(*(parts.get(one, ()) for one in run.prepared)) & by_name.keys()):
                self._users.setdefault(name, []).append(run.name)
                self._used_by.setdefault(run.name, []).append(by_name[name])
        self._unknown = next(
            (run.name for run in runs if run.may_prepare and not run.ended and why_alive(run, now_s)), None
        )

    def unused(self, taken: _Taken) -> Iterator[PreparedFacts]:
        """Yield prepared data that may be removed, given the decisions about runs so far."""
        return (one for one in self.every if self.why_kept(one, taken) is None)

    def freed_by(self, run: str, taken: _Taken) -> Iterator[PreparedFacts]:
        """Yield prepared data that may be removed because this run is."""
        return (one for one in self._used_by.get(run, ()) if self.why_kept(one, taken) is None)

    def why_kept(self, one: PreparedFacts, taken: _Taken) -> str | None:
        users = self._users.get(one.name, ())
        # The newest runs are removed last.
        if user := next((run for run in reversed(users) if not taken.is_gone(run)), None):
            return f"used by {user}" + (" and others" if len(users) > 1 else "")
        if one.lease_s is not None and self._now_s - one.lease_s < ALIVE_S:
            return "it is being prepared"
        if self._now_s - self.touched_s[one.name] < ALIVE_S:
            return "written within the last day"
        if self._unknown is not None:
            return f"{self._unknown} may be about to use it"
        return None if self._asked_for else "no run uses it: --prepared removes it"


def _by_age(taken: _Taken, runs: tuple[RunFacts, ...], shared: _Shared, bounds: Bounds, before_s: float) -> None:
    part = ToRemove.CHECKPOINTS if bounds.checkpoints_only else ToRemove.RUN
    old = [run for run in reversed(runs) if run.since_s < before_s]
    for _ in taken.passes():
        for run in old:
            taken.take(run, part, "older than --older-than")
    for one in shared.unused(taken):
        if shared.touched_s[one.name] < before_s:
            taken.take_prepared(one, "older than --older-than, and no run uses it")


def _by_size(taken: _Taken, runs: tuple[RunFacts, ...], shared: _Shared, bounds: Bounds) -> None:
    assert bounds.most_size is not None
    for step in _steps(taken, runs, shared, bounds):
        if taken.left <= bounds.most_size:
            return
        step()


def _steps(taken: _Taken, runs: tuple[RunFacts, ...], shared: _Shared, bounds: Bounds) -> Iterator[Callable[[], None]]:
    """Yield the possible steps to make room, in the order described above."""
    why, unused = "removed for --max-size", "no run uses it, and removed for --max-size"
    for one in shared.unused(taken):
        yield partial(taken.take_prepared, one, unused)
    for run in sorted(runs, key=lambda run: run.status != "succeeded"):
        yield partial(taken.take, run, ToRemove.CHECKPOINTS, why)
    if bounds.checkpoints_only:
        return
    for _ in taken.passes():
        for run in runs:
            yield partial(taken.take, run, ToRemove.RUN, why)
            for one in shared.freed_by(run.name, taken):
                yield partial(taken.take_prepared, one, unused)


def _prepared_verdict(one: PreparedFacts, taken: _Taken, shared: _Shared) -> PreparedVerdict:
    if one.name in taken.prepared:
        return PreparedVerdict(one, True, taken.prepared[one.name])
    return PreparedVerdict(one, False, shared.why_kept(one, taken) or "within the bounds")
