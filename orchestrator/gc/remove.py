"""Removes what `fleetune gc` has decided on. No other module of this room removes anything.

An interrupted removal leaves nothing that looks complete. A run first gets a note that it is being removed. Then its
spec is removed, without which it does not count as a run, then everything else, and last the note. The next `gc`
continues with runs that have the note and no spec. The marker of a checkpoint, and the manifest of prepared data, are
removed first. Links are not followed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from cluster.errors import FleetuneError, StorageError
from jobs.run.find import run_names
from jobs.run.paths import PREPARED_MANIFEST, JobPaths, checkpoint_step, prepared_root
from jobs.storage.listing import listing
from orchestrator.gc.scan import INSIDE, checkpoint_folders, size_of, touched_s
from orchestrator.gc.tree import Tree
from orchestrator.gc.values import GcPlan, PreparedFacts, RunFacts, RunVerdict, ToRemove

_TRIES: Final = 5


@dataclass(frozen=True)
class Removed:
    """The result for one run or directory: removed, or why not. `freed`: bytes."""

    name: str
    freed: int
    problem: str | None = None


def carry_out(storage_path: str, plan: GcPlan) -> Iterator[Removed]:
    """Remove what the plan says, item by item. A failure is reported, and the others are still tried.

    Each item is checked again first. If it was written to after the plan was made, it is kept.
    """
    for left in plan.leftovers:
        yield _tried(left.name, left.size, partial(_empty, Tree(storage_path), left.name))
    for verdict in plan.runs:
        if verdict.to_remove is not ToRemove.NOTHING:
            yield _tried(verdict.run.name, verdict.freed, partial(_remove, storage_path, verdict))
    known = {verdict.run.name for verdict in plan.runs}
    for one in (verdict.prepared for verdict in plan.prepared if verdict.to_remove):
        yield _tried(f"prepared/{one.name}", one.size, partial(_remove_prepared, storage_path, one, known))


def _tried(name: str, size: int, remove: Callable[[], None]) -> Removed:
    try:
        remove()
    except FleetuneError as error:
        return Removed(name, 0, str(error))
    return Removed(name, size)


class _Changed(FleetuneError):
    """The item was written to since the plan."""


def _remove(storage_path: str, verdict: RunVerdict) -> None:
    tree, name = Tree(storage_path), verdict.run.name
    root = JobPaths.of(storage_path, name).root
    _check_as_seen(root, verdict.run)
    if verdict.to_remove is ToRemove.CHECKPOINTS:
        for folder in checkpoint_folders(listing(root)):
            _remove_checkpoints(tree, name, *folder.split("/"))
    else:
        tree.write(json.dumps({"by": "fleetune gc"}).encode(), name, INSIDE.removing)
        tree.remove(name, INSIDE.spec)
        _empty(tree, name)


def _check_as_seen(root: str, seen: RunFacts | PreparedFacts) -> None:
    files = listing(root)
    if (size_of(files), touched_s(files, seen.touched_s)) != (seen.size, seen.touched_s):
        raise _Changed("it was written to in the meantime")


def _remove_checkpoints(tree: Tree, *folder: str) -> None:
    """Remove a directory and the checkpoints in it. `folder`: the parts of its path."""
    from jobs.run.checkpoints import COMMIT_NAME  # imported here, since it imports numpy

    if not tree.is_link(*folder):
        for name in tree.names(*folder):
            if checkpoint_step(name) is not None and not tree.is_link(*folder, name):
                tree.remove(*folder, name, COMMIT_NAME)
                tree.remove(*folder, name)
    tree.remove(*folder)


def _empty(tree: Tree, run: str) -> None:
    """Remove a run without a spec, and its note last. Two processes may do so at once."""
    for _ in range(_TRIES):
        names = [name for name in tree.names(run) if name != INSIDE.removing]
        if not names:
            tree.remove(run, INSIDE.removing)
            tree.remove(run)
            return
        for name in names:
            tree.remove(run, name)
    raise StorageError(
        f"{tree.root}/{run} does not become empty, because a process writes to it. Run gc again when it has ended"
    )


def _remove_prepared(storage_path: str, one: PreparedFacts, known: set[str]) -> None:
    root = prepared_root(storage_path, one.name)
    if new := [name for name in run_names(storage_path) if name not in known]:
        raise _Changed(f"{new[0]} has begun in the meantime, and may use it")
    _check_as_seen(root, one)
    tree, inside = Tree(storage_path), tuple(prepared_root("", one.name).split("/"))
    tree.remove(*inside, PREPARED_MANIFEST)
    tree.remove(*inside)
