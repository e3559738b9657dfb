"""Removing what `fleetune gc` has decided on: the one place that does.

A run goes in an order that leaves nothing half which looks whole, wherever this is cut off: a note that it is being
removed; its spec, without which it is no run to anybody; everything else; the note. What has the note and no spec is
taken up by the next `gc`. A checkpoint loses its marker first, prepared data its manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from jobs import storage
from jobs.errors import FleetuneError, StorageError
from jobs.findrun import run_names
from jobs.listing import listing
from jobs.paths import JobPaths, prepared_root
from orchestrator.gc.look import MANIFEST, size_of, touched_s
from orchestrator.gc.values import GcPlan, Goes, PreparedFacts, RunFacts, RunVerdict

_TRIES: Final = 5


@dataclass(frozen=True)
class Removed:
    """What became of one thing: gone, or why it is not. `freed`: bytes."""

    name: str
    freed: int
    problem: str | None = None


def carry_out(storage_path: str, plan: GcPlan) -> Iterator[Removed]:
    """Remove what goes, one thing after the other. What cannot be removed is told, and the next one tried.

    Everything is looked at once more first: what was written to meanwhile stays.
    """
    for left in plan.leftovers:
        yield _tried(left.name, left.size, partial(_empty, JobPaths.of(storage_path, left.name)))
    for verdict in plan.runs:
        if verdict.goes is not Goes.NOTHING:
            yield _tried(verdict.run.name, verdict.freed, partial(_remove, storage_path, verdict))
    known = {verdict.run.name for verdict in plan.runs}
    for one in (verdict.prepared for verdict in plan.prepared if verdict.goes):
        yield _tried(f"prepared/{one.name}", one.size, partial(_remove_prepared, storage_path, one, known))


def _tried(name: str, size: int, remove: Callable[[], None]) -> Removed:
    try:
        remove()
    except FleetuneError as error:
        return Removed(name, 0, str(error))
    return Removed(name, size)


class _Changed(FleetuneError):
    """Somebody was there meanwhile."""


def _remove(storage_path: str, verdict: RunVerdict) -> None:
    paths = JobPaths.of(storage_path, verdict.run.name)
    _check_as_seen(paths.root, verdict.run)
    if verdict.goes is Goes.CHECKPOINTS:
        _remove_checkpoints(paths)
    else:
        storage.write_bytes(paths.removing, json.dumps({"by": "fleetune gc"}).encode())
        storage.remove_file(paths.spec)
        _empty(paths)


def _check_as_seen(root: str, seen: RunFacts | PreparedFacts) -> None:
    files = listing(root)
    if (size_of(files), touched_s(files, seen.touched_s)) != (seen.size, seen.touched_s):
        raise _Changed("somebody wrote to it meanwhile")


def _remove_checkpoints(paths: JobPaths) -> None:
    from jobs.checkpoints import commit_path, saved_steps  # brings numpy

    for step in saved_steps(paths):
        storage.remove_file(commit_path(paths, step))
        storage.remove_dir(paths.checkpoint(step))
    storage.remove_dir(paths.checkpoints)


def _empty(paths: JobPaths) -> None:
    """Remove a run that has no spec any more; the note goes last. Two may do so at once."""
    note = paths.removing.rpartition("/")[2]
    for _ in range(_TRIES):
        names = [name for name in storage.list_names(paths.root) if name != note]
        if not names:
            storage.remove_file(paths.removing)
            storage.remove_dir(paths.root)
            return
        for path in (storage.join(paths.root, name) for name in names):
            (storage.remove_dir if _is_folder(path) else storage.remove_file)(path)
    raise StorageError(f"{paths.root} does not get empty: somebody writes to it. Call gc again when nobody does")


def _is_folder(path: str) -> bool:
    """A link to one is none: what is behind it stays."""
    is_link = storage.is_local(path) and os.path.islink(storage.local_path(path))
    return not is_link and storage.is_dir(path)


def _remove_prepared(storage_path: str, one: PreparedFacts, known: set[str]) -> None:
    root = prepared_root(storage_path, one.name)
    if new := [name for name in run_names(storage_path) if name not in known]:
        raise _Changed(f"{new[0]} has begun meanwhile, and may use it")
    _check_as_seen(root, one)
    storage.remove_file(storage.join(root, MANIFEST))
    storage.remove_dir(root)
