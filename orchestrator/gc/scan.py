"""Finds what is under a storage path, from one listing and some small files of runs. Writes nothing."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from cluster.errors import FleetuneError, StorageError
from jobs.run.outcome import Outcome, Status, outcome_of
from jobs.run.paths import (
    CHECKS,
    FINAL_RUN,
    METHODS,
    PREPARED,
    PREPARED_MANIFEST,
    PREPARING,
    JobPaths,
    prepared_root,
    time_in_name,
)
from jobs.run.summary import SILENT_AFTER_S
from jobs.spec.load import job_in
from jobs.storage import files as storage
from jobs.storage.journal import is_part, written_at_s
from jobs.storage.listing import Listed, listing
from orchestrator.gc.tree import Tree
from orchestrator.gc.values import Found, Leftover, PreparedFacts, RunFacts

INSIDE: Final = JobPaths("")  # names of files relative to a run, as in a listing

_JOURNALS: Final = (INSIDE.events, INSIDE.metrics)
_READERS = 8
_FINGERPRINT = re.compile(r"^[0-9a-f]{16,64}$")
# Specs of a run, of the methods of a comparison and of final runs. The manifest beside each names its data.
_SPEC = re.compile(rf"^((?:{METHODS}/[^/]+/)?(?:{FINAL_RUN.pattern}/)?){re.escape(INSIDE.spec)}$")
# Of a run, of the trials of a sweep, and of those of a comparison's methods.
_CHECKPOINTS = re.compile(rf"^((?:{METHODS}/[^/]+/)?(?:[^/]+/)?{INSIDE.checkpoints})/")

Files = Sequence[Listed]
Item = TypeVar("Item")
Fact = TypeVar("Fact")


def look(storage_path: str, now_s: float) -> Found:
    """Return everything under a storage path.

    Raises:
        StorageError: the path does not exist, or cannot be read.
    """
    if not storage.is_dir(storage_path):
        raise StorageError(f"there is no directory {storage_path}. Give --storage, or set FLEETUNE_STORAGE_PATH")
    folders = _by_folder(listing(storage_path))
    prepared, strange = _prepared_folders(folders.pop(PREPARED, []))
    runs = {name: files for name, files in folders.items() if _holds(files, INSIDE.spec) and not name.startswith(".")}
    left = {name: files for name, files in folders.items() if name not in runs and _holds(files, INSIDE.removing)}
    others = [files for name, files in folders.items() if name not in runs and name not in left]
    return Found(
        _at_once(partial(_run_of, storage_path, now_s, runs.keys()), sorted(runs.items())),
        _at_once(partial(_prepared_of, storage_path, now_s), sorted(prepared.items())),
        tuple(Leftover(name, size_of(files)) for name, files in sorted(left.items())),
        sum(map(size_of, [*others, strange])),
    )


def _at_once(read: Callable[[Item], Fact], items: Iterable[Item]) -> tuple[Fact, ...]:
    with ThreadPoolExecutor(_READERS) as pool:
        return tuple(pool.map(read, items))


def _by_folder(files: Iterable[Listed]) -> dict[str, list[Listed]]:
    """Group files by folder, with names relative to it; files without a folder are under ''."""
    folders: dict[str, list[Listed]] = defaultdict(list)
    for file in files:
        folder, slash, inner = file.name.partition("/")
        folders[folder if slash else ""].append(Listed(inner or file.name, file.size, file.modified_s))
    return folders


def size_of(files: Files) -> int:
    return sum(file.size for file in files)


def _holds(files: Files, name: str) -> bool:
    return any(file.name == name for file in files)


def touched_s(files: Files, unknown_s: float) -> float:
    """Return when the newest file was written. `unknown_s`: the time to return if the storage has no times."""
    return max((file.modified_s for file in files if file.modified_s is not None), default=unknown_s)


def _run_of(storage_path: str, now_s: float, runs: Collection[str], named: tuple[str, Files]) -> RunFacts:
    """Describe a run from the listing of its directory. If the storage has no times, it counts as written now."""
    name, files = named
    paths = JobPaths.of(storage_path, name)
    written_s = touched_s(files, now_s)
    parts = {match[1] for file in files if (match := _SPEC.match(file.name))}
    if any(part.startswith(f"{METHODS}/") for part in parts):
        parts -= {""}  # a comparison itself prepares nothing
    prepared = {_fingerprint_of(storage_path, name, part) for part in parts}
    status, since_s = _status(storage_path, paths, files, written_s, now_s)
    spec = _read_json(storage_path, name, INSIDE.spec)
    return RunFacts(
        name=paths.name,
        status=status,
        since_s=since_s,
        touched_s=written_s,
        size=size_of(files),
        checkpoint_size=size_of([file for file in files if _CHECKPOINTS.match(file.name)]),
        prepared=frozenset(one for one in prepared if one is not None),
        may_prepare=None in prepared,
        starts_from=run_named_by(model_path(spec), runs),
        needs_base=status != Status.SUCCEEDED or not _is_full(spec),
    )


def _is_full(spec: Mapping[str, Any]) -> bool:
    """Whether a spec of any kind trains every parameter, so that its models need no base."""
    method = job_in(spec).get("method", "full")
    kind = method.get("kind", "full") if isinstance(method, dict) else method
    return kind == "full" and spec.get("kind") != "compare"


def checkpoint_folders(files: Files) -> list[str]:
    """List the directories with the checkpoints of a run, or of all runs of a search, relative to the run."""
    return sorted({match[1] for file in files if (match := _CHECKPOINTS.match(file.name))})


def _status(storage_path: str, paths: JobPaths, files: Files, written_s: float, now_s: float) -> tuple[str, float]:
    """Return the status, as `jobs.run.summary.summarise` does, and the time of its end or its last sign of life."""
    outcome: Outcome | None = None
    if _holds(files, INSIDE.outcome):
        try:
            outcome = outcome_of(Tree(storage_path).read(paths.name, INSIDE.outcome), paths.outcome)
        except (FleetuneError, ValueError):
            return "unreadable", written_s
    if outcome is not None:
        return outcome.status, outcome.ended_at.timestamp()
    names = (file.name.partition("/") for file in files)
    journal = (written_at_s(name) for folder, _, name in names if folder in _JOURNALS and is_part(name))
    started = time_in_name(paths.name)
    heard_s = max([written_s, *journal, *([started.timestamp()] if started else [])])
    return "running" if now_s - heard_s <= SILENT_AFTER_S else "lost", heard_s


def _fingerprint_of(storage_path: str, run: str, part: str) -> str | None:
    found = _read_json(storage_path, run, *f"{part}{INSIDE.manifest}".split("/")).get("data_fingerprint")
    return found if isinstance(found, str) else None


def model_path(spec: Mapping[str, Any]) -> str:
    """Return the path of the model that a spec of any kind names; '': it names none."""
    model = job_in(spec).get("model")
    return str(model.get("path", "")) if isinstance(model, dict) else ""


def run_named_by(path: str, runs: Collection[str]) -> str | None:
    """Return which of these runs contains a model's path; None: none of them."""
    return next((part for part in path.split("/") if part in runs), None)


def _read_json(storage_path: str, *names: str) -> dict[str, Any]:
    try:
        found = json.loads(Tree(storage_path).read(*names))
    except (StorageError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _prepared_folders(files: Iterable[Listed]) -> tuple[dict[str, list[Listed]], list[Listed]]:
    """Split files into directories of prepared data and of reports, by name, and all others."""
    known: dict[str, list[Listed]] = defaultdict(list)
    strange: list[Listed] = []
    for file in files:
        folder, _, inner = file.name.partition("/")
        if folder == CHECKS:
            report, _, inner = inner.partition("/")
            folder = f"{CHECKS}/{report}"
        if inner and _FINGERPRINT.match(folder.removeprefix(f"{CHECKS}/")):
            known[folder].append(Listed(inner, file.size, file.modified_s))
        else:
            strange.append(file)
    return known, strange


def _prepared_of(storage_path: str, now_s: float, named: tuple[str, Files]) -> PreparedFacts:
    name, files = named
    lease_files = [file for file in files if file.name == PREPARING]
    sources = _sources_of(storage_path, name) if _holds(files, PREPARED_MANIFEST) else frozenset()
    lease_s = touched_s(lease_files, now_s) if lease_files else None
    return PreparedFacts(name, touched_s(files, now_s), size_of(files), sources - {name}, lease_s)


def _sources_of(storage_path: str, name: str) -> frozenset[str]:
    """Return the directories that contain the splits of a job's data."""
    splits = _read_json(storage_path, *prepared_root("", name).split("/"), PREPARED_MANIFEST).get("splits")
    lists = splits.values() if isinstance(splits, dict) else ()
    parts = [part for one in lists for part in (one if isinstance(one, list) else [one])]
    folders = (part.get("folder") for part in parts if isinstance(part, dict))
    return frozenset(folder.partition("/")[0] for folder in folders if isinstance(folder, str))
