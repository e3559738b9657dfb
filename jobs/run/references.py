"""`model.path: run:NAME`: the model that another run has exported. A queue's server puts the path in its place."""

from __future__ import annotations

import shlex

from jobs.errors import DataError
from jobs.run.find import find_run
from jobs.run.paths import JobPaths
from jobs.spec.finetune import RUN_REFERENCE, Spec
from jobs.storage import files as storage


def run_named(path: str) -> str | None:
    """NAME of `run:NAME`, which is neither a directory nor a URL; None for every other path."""
    match = RUN_REFERENCE.match(path)
    return match[1] if match else None


def is_run_reference(path: str) -> bool:
    return run_named(path) is not None


def with_model_of_run(spec: Spec) -> Spec:
    """The spec with the model's own path in the place of `run:NAME`, which is looked for under its storage_path.

    Raises:
        InputError: none or several runs are meant, or the one has exported no model.
    """
    name = run_named(spec.model.path)
    if name is None:
        return spec
    paths = JobPaths(find_run(name, spec.storage_path))
    if not storage.exists(storage.join(paths.model, "config.json")):
        raise DataError(
            f"model.path {spec.model.path}: run {paths.name} has no model, which it exports when it succeeds. "
            f"`fleetune export {shlex.quote(paths.root)}` makes one of its newest checkpoint"
        )
    return spec.model_copy(update={"model": spec.model.model_copy(update={"path": paths.model})})
