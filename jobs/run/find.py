"""Finds a run by its name, the start of its name, a path or a URL."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shlex

from cluster.settings import read_settings
from cluster.text import did_you_mean
from jobs.errors import DataError, InputError, StorageError
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.references import run_named
from jobs.storage import files as storage


def storage_root(given: str | None) -> str:
    """Return the absolute path of the runs: as given, or from the environment."""
    return _absolute(given or read_settings().storage_path)


def run_names(storage_path: str) -> list[str]:
    """List the directories that have a spec.json."""
    names = [name for name in storage.list_names(storage_path) if name != "prepared" and not name.startswith(".")]
    return [name for name in names if storage.exists(JobPaths.of(storage_path, name).spec)]


def find_run(run: str, storage_path: str) -> str:
    """Return the root of a run, given its path, URL, name, or a start of the name that is unique.

    Raises:
        InputError: no run or several runs match.
    """
    if storage.is_url(run) or os.sep in run or os.path.exists(os.path.join(run, "spec.json")):
        root = _absolute(run).rstrip("/")
        if not storage.exists(JobPaths(root).spec):
            raise InputError(f"{run} is not a run: there is no spec.json in it{_suggestion(root)}")
        return root
    names = run_names(storage_path) if storage.is_dir(storage_path) else []
    found = [name for name in names if name == run] or [name for name in names if name.startswith(run)]
    if len(found) == 1:
        return JobPaths.of(storage_path, found[0]).root
    if found:
        raise InputError(f"{run!r} may mean {len(found)} runs: {_some_names(found)}. Give more of the name")
    what = (
        f"existing runs are {_some_names(names)}. Jobs of a queue: `fleetune queue --all`"
        if names
        else "there are no runs. Give the run's path, or set FLEETUNE_STORAGE_PATH to the directory of the runs"
    )
    raise InputError(f"no run {run!r} under {storage_path}{did_you_mean(run, names) or f': {what}'}")


def _absolute(path: str) -> str:
    return path if storage.is_url(path) else os.path.abspath(os.path.expanduser(path))


def _suggestion(root: str) -> str:
    """Suggest similar names in the directory of a path that is not a run."""
    folder, name = posixpath.split(root)
    with contextlib.suppress(StorageError):
        return did_you_mean(name, [other for other in storage.list_names(folder) if other != name])
    return ""


def _some_names(names: list[str]) -> str:
    return ", ".join(names[-5:]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def with_model_of_run(spec: Spec) -> Spec:
    """Replace `model.path: run:NAME` by the path of the model that the run NAME under `storage_path` has exported.

    Raises:
        InputError: no run or several runs have this name, or the run has exported no model.
    """
    name = run_named(spec.model.path)
    if name is None:
        return spec
    paths = JobPaths(find_run(name, spec.storage_path))
    if not storage.exists(storage.join(paths.model, "config.json")):
        raise DataError(
            f"model.path {spec.model.path}: run {paths.name} has no model; a run exports it when it succeeds. "
            f"`fleetune export {shlex.quote(paths.root)}` makes a model from its newest checkpoint"
        )
    return spec.model_copy(update={"model": spec.model.model_copy(update={"path": paths.model})})
