"""Whether the workers of a cluster will see the paths that a spec names: those of one machine are no others'."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator, Sequence

from cluster.errors import InputError
from jobs import storage
from jobs.commandspec import CommandSpec
from jobs.runref import run_named
from jobs.spec import Spec

_HUB_ID = re.compile(r"(?=.*\w)[\w-][\w.-]*(/[\w-][\w.-]*)?")  # as meta-llama/Llama-3.2-1B


class NotReadable(InputError):
    """The workers cannot read, or not write, what the spec names."""

    status = 400


class Readable:
    """Remembers what it has found, for one submission."""

    def __init__(self, shared: tuple[str, ...], one_machine: bool, packages: Sequence[str] = ()) -> None:
        """`packages`: folders that Ray unpacks wherever the job runs; what is written there is lost."""
        self._shared = tuple(os.path.normpath(root) for root in shared)
        self._packages = tuple(os.path.normpath(root) for root in packages)
        self._one_machine = one_machine
        self._known: dict[tuple[str, str, bool], str | None] = {}

    def problems(self, spec: Spec | CommandSpec) -> Iterator[NotReadable]:
        for field, path, is_written in named_paths(spec):
            if (wrong := self._problem(field, path, is_written)) is not None:
                yield NotReadable(f"{field}: {wrong}")

    def _problem(self, field: str, path: str, is_written: bool) -> str | None:
        key = (field, path, is_written)
        if key not in self._known:
            self._known[key] = self._look(field, path, is_written)
        return self._known[key]

    def _look(self, field: str, given: str, is_written: bool) -> str | None:
        if not storage.is_local(given):
            return f"{given} is a URL, and programs run in folders" if field == "working_dir" else None
        path = storage.local_path(given)
        if "\0" in path:
            return "has a zero byte in it"
        if not os.path.isabs(path):
            return f"{given} is no absolute path, and where it begins is not known here: give all of it, or a URL"
        path = os.path.normpath(path)
        if not is_written and _root_of(path, self._packages) is not None:
            return _is_not_there(field, path) if os.path.isdir(os.path.dirname(path)) else None
        root = _root_of(path, self._shared)
        if root is None and not self._one_machine:
            return self._elsewhere(field, given)
        if root is not None and not self._one_machine and not os.path.isdir(root):
            return None  # the workers see it, this machine does not
        return _cannot_be_written(path) if is_written else _is_not_there(field, path)

    def _elsewhere(self, field: str, path: str) -> str:
        seen = f" Paths that all machines see begin with {' or '.join(self._shared)}." if self._shared else ""
        if field in ("storage_path", "working_dir"):
            what = "a URL (s3://..., gs://...)" if field == "storage_path" else "a folder that all machines see"
            return f"{path} is a path of one machine, and the workers run on others: give {what}.{seen}"
        return (
            f"{path} is a path of one machine, and the workers run on others, which cannot read it. Upload it, as "
            f"`fleetune upload {shlex.quote(path)} s3://BUCKET/FOLDER`, and give that URL.{seen}"
        )


def _root_of(path: str, roots: Sequence[str]) -> str | None:
    return next((root for root in roots if path == root or path.startswith(root.rstrip("/") + "/")), None)


def named_paths(spec: Spec | CommandSpec) -> Iterator[tuple[str, str, bool]]:
    """(field, path or URL, whether it is written to) of all that the workers are to find. Names of a hub are none."""
    if spec.working_dir is not None:
        yield "working_dir", spec.working_dir, False
    if isinstance(spec, CommandSpec):
        return
    yield "storage_path", spec.storage_path, True
    model = spec.model.path
    if run_named(model) is None and not _HUB_ID.fullmatch(model):
        yield "model.path", model, False
    for role in ("train", "eval"):
        sources = getattr(spec.data, role) or ()
        for number, source in enumerate(sources):
            yield f"data.{role}" + (f"[{number}]" if len(sources) > 1 else ""), source.path, False


def _is_not_there(field: str, path: str) -> str | None:
    if field == "working_dir":
        return None if os.path.isdir(path) else f"{path} is no folder"
    if os.path.exists(path):
        return None
    if not field.startswith("data.") or not glob.has_magic(path):
        return f"{path} is not there"
    folder = path  # of a glob, only where it begins: to walk through it may take for ever
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return None if os.path.isdir(folder) else f"{folder} is not there"


def _cannot_be_written(path: str) -> str | None:
    """Whether it is a folder, or could be made, as far as this process may say."""
    there = path
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written to"
