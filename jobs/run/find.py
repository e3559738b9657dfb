"""Finds a run by its name, the start of its name, a path or a URL."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import shlex
from collections.abc import Sequence
from typing import Any

from cluster import settings
from cluster.errors import DataError, InputError, StorageError
from cluster.text import did_you_mean, nearest
from jobs.run.outcome import read_outcome
from jobs.run.paths import PREPARED, JobPaths, job_in_name, made_from
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import load_marked, trained_job
from jobs.spec.references import run_named
from jobs.storage import files as storage


def storage_root(given: str | None) -> str:
    """Return the absolute path of the runs: as given, or from the environment. Raises InputError: it is empty."""
    if given is not None and not given.strip():
        raise InputError("--storage is empty: is a shell variable not set?")
    return absolute(given or settings.storage_path())


def run_names(storage_path: str) -> list[str]:
    """List the directories that have a spec.json."""
    names = [name for name in storage.list_names(storage_path) if name != PREPARED and not name.startswith(".")]
    return [name for name in names if storage.exists(JobPaths.of(storage_path, name).spec)]


def find_run(run: str, storage_path: str) -> str:
    """Return the root of a run, given its path, URL, name, or a start of the name that is unique.

    Raises:
        InputError: no run or several runs match, or `run` is empty.
    """
    if not run.strip():  # it would be the start of every name
        raise InputError("RUN is empty: is a shell variable not set?")
    name = run.rstrip("/")  # a shell completes the name of a directory with a slash
    if storage.is_url(run) or not name or os.sep in name or os.path.exists(os.path.join(name, "spec.json")):
        root = absolute(run).rstrip("/")
        if not storage.exists(JobPaths(root).spec):
            raise InputError(f"{run} is not a run: there is no spec.json in it{_suggestion(root)}")
        return root
    if not name.startswith(".") and name != PREPARED and storage.exists(JobPaths.of(storage_path, name).spec):
        return JobPaths.of(storage_path, name).root
    names = run_names(storage_path) if storage.is_dir(storage_path) else []
    found = [one for one in names if one.startswith(name)]
    if len(found) == 1:
        return JobPaths.of(storage_path, found[0]).root
    if found:
        raise InputError(f"{name!r} may mean {len(found)} runs: {_some_names(found)}. Give more of the name")
    what = (
        f"existing runs are {_some_names(names)}. Jobs of a queue: `fleetune queue --all`"
        if names
        else "there are no runs. Give the run's path, or set FLEETUNE_STORAGE_PATH to the directory of the runs"
    )
    raise InputError(f"no run {name!r} under {storage_path}{_named_like(name, names) or f': {what}'}")


def read_spec_json(paths: JobPaths) -> dict[str, Any]:
    """Read the spec.json of a run of any kind and release, without checking its fields.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    content = storage.read_bytes(paths.spec)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StorageError(
            f"{paths.spec} is not the spec of a run: it is empty or damaged. Restore the file, or remove the run"
        )
    return found


def sweep_of(paths: JobPaths) -> JobPaths | None:
    """Return the sweep in whose directory a trial or a final run is; None: the run is not part of a sweep."""
    sweep = JobPaths(posixpath.dirname(paths.root.rstrip("/")))
    with contextlib.suppress(StorageError):
        if storage.exists(sweep.spec) and read_spec_json(sweep).get("kind") == "sweep":
            return sweep
    return None


def absolute(path: str) -> str:
    """Make a local path of the command line absolute; a URL is returned as it is."""
    return path if storage.is_url(path) else os.path.abspath(os.path.expanduser(path))


def _suggestion(root: str) -> str:
    """Suggest longer or similar names in the directory of a path that is not a run."""
    folder, name = posixpath.split(root)
    with contextlib.suppress(StorageError):
        others = [other for other in storage.list_names(folder) if other != name]
        longer = [other for other in others if name and other.startswith(name)]
        return f"; did you mean {_some_names(longer)}?" if longer else _named_like(name, others)
    return ""


def _named_like(given: str, names: Sequence[str]) -> str:
    """Suggest the run with the nearest name, or else the newest of those whose name without the time is nearest."""
    without_time = {job_in_name(name) or name: name for name in names}
    near = nearest(given, without_time)
    return did_you_mean(given, names) or ("" if near is None else f"; did you mean {without_time[near]}?")


def _some_names(names: list[str]) -> str:
    return ", ".join(names[-5:]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def with_model_of_run(spec: Spec) -> Spec:
    """Replace `model.path: run:NAME` by the path of the model that the run NAME under `storage_path` has exported.

    Of a run that has trained a LoRA adapter, it is the merged model.

    Raises:
        InputError: no run or several runs have this name, or the run has no model, or one that is out of date.
    """
    name = run_named(spec.model.path)
    if name is None:
        return spec
    paths = JobPaths(find_run(name, spec.storage_path))
    found = next((one for one in (paths.model, paths.merged) if storage.exists(storage.join(one, "config.json"))), None)
    if found is None:
        raise DataError(f"model.path {spec.model.path}: {_no_model(paths)}")
    if _is_stale(paths, found):
        was, does, method = (
            ("adapter was merged", "merges it", "lora")
            if found == paths.merged
            else ("model was exported", "exports it", "full")
        )
        raise DataError(
            f"model.path {spec.model.path}: run {paths.name} may have been resumed since its {was}. "
            f"`{export_command(paths, method)}` {does} again; then this spec works"
        )
    return spec.model_copy(update={"model": spec.model.model_copy(update={"path": found})})


def export_command(paths: JobPaths, method: str) -> str:
    """Return the command that makes a whole model from a run, which was trained with `full` or `lora`."""
    return f"fleetune export {shlex.quote(paths.root)}{' --merged' if method == 'lora' else ''}"


def _no_model(paths: JobPaths) -> str:
    found = load_marked(paths.spec).spec
    if isinstance(found, CompareSpec):
        return (
            f"run {paths.name} is a comparison, which has a model for each method. "
            f"Set model.path to one of them: they lie in {paths.method('NAME')}/TRIAL/model"
        )
    spec = trained_job(found)
    method = "full" if spec is None else spec.method.kind
    if spec is not None and method == "prompt":
        return (
            f"run {paths.name} has trained a prompt, which cannot be merged into a model. "
            f"To train from its base model, set model.path: {spec.model.path}"
        )
    if method == "lora":
        return (
            f"run {paths.name} has trained an adapter, which is no whole model. "
            f"`{export_command(paths, method)}` merges it into its base model; then this spec works"
        )
    return (
        f"run {paths.name} has no model; a run exports it when it succeeds. "
        f"`{export_command(paths, method)}` makes a model from its newest checkpoint"
    )


def export_source(paths: JobPaths) -> str | None:
    """Return a digest of what an export of the run is made from: its outcome with a model, or its newest checkpoint.

    None if it has neither.
    """
    from jobs.run.checkpoints import commit_path, committed_steps  # imports numpy, which the command line does without

    outcome = read_outcome(paths)
    if outcome is not None and outcome.model_path is not None:
        source = paths.outcome
    elif steps := committed_steps(paths):
        source = commit_path(paths, steps[-1])
    else:
        return None
    return hashlib.sha256(storage.read_bytes(source)).hexdigest()


def _is_stale(paths: JobPaths, model: str) -> bool:
    """Whether the model was made from something else than an export now. Removed checkpoints do not count."""
    outcome = read_outcome(paths)
    if model == paths.model and outcome is not None and outcome.model_path is not None:
        return False  # the run's own export, which it has verified
    now, mark = export_source(paths), made_from(model)
    return now is not None and now != (storage.read_bytes(mark).decode() if storage.exists(mark) else None)
