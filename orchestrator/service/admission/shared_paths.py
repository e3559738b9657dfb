"""Shared paths: whether the workers of a cluster can see the paths that a spec names."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence

from cluster.errors import InputError
from jobs.spec.data import numbered
from jobs.spec.evaluation import is_task_file
from jobs.spec.load import AnySpec, trained_job
from jobs.spec.references import run_named
from jobs.spec.sweep import Search
from jobs.storage import files as storage
from jobs.storage import locations as location
from jobs.storage import without_links as beneath
from orchestrator.queue.tenants import Tenant
from orchestrator.service.roots import outside, root_of

_LEFT_TO_THE_JOB = (errno.ELOOP, errno.ENOTDIR)  # the path is behind a link, or below a file
_HUB_ID = re.compile(r"(?=.*\w)[\w-][\w.-]*(/[\w-][\w.-]*)?")  # for example meta-llama/Llama-3.2-1B


Roots = tuple[str, ...] | None  # of a tenant; None: it may name any path


class NotReadable(InputError):
    """The workers cannot read or write a path that the spec names."""

    status = 400


class Readable:
    """Checks the paths of one submission, and caches the results.

    A path is accessed only if the workers see the same files, and only below the tenant's roots, if it has any. A
    missing path and one without permission get the same message, so that it does not reveal which files exist.
    """

    def __init__(
        self,
        shared: tuple[str, ...],
        one_machine: bool,
        packages: Sequence[str] = (),
        protocols: Collection[str] = (),
        same_user: bool = True,
    ) -> None:
        """
        Args:
            same_user: the workers run as the user of this process. Otherwise, it cannot tell where they may write.
            packages: folders that Ray unpacks on each worker; files written there are lost.
            protocols: protocols that the administrator allows in addition to `locations.PROTOCOLS`.
        """
        self._protocols = protocols
        self._shared = tuple(os.path.normpath(root) for root in shared)
        self._packages = tuple(os.path.normpath(root) for root in packages)
        self._one_machine, self._same_user = one_machine, same_user
        self._problem = functools.cache(self._look)

    def problems(self, spec: AnySpec, tenant: Tenant | None = None) -> Iterator[InputError]:
        """Yield the problems of a spec's paths.

        Args:
            tenant: the tenant of the job; None: unknown, and roots are not checked.
        """
        roots = tenant.restrictions.roots if tenant is not None else None
        inside = "base." if isinstance(spec, Search) else ""
        for field, path, is_written in named_paths(spec):
            where, limited = f"{inside}{field}", None if field == "working_dir" else tenant
            if limited is not None and (refused := outside(where, path, limited.name, roots)):
                yield refused
            elif (wrong := self._problem(field, path, is_written, roots)) is not None:
                yield NotReadable.at(where, wrong)

    def _look(self, field: str, given: str, is_written: bool, roots: Roots) -> str | None:
        if (wrong := location.problem(given, self._protocols)) is not None:
            return wrong
        if not storage.is_local(given):
            return f"{given} is a URL, and programs run in folders" if field == "working_dir" else None
        path = given.removeprefix("file://")
        if not os.path.isabs(path):
            return f"{given} is no absolute path, and where it begins is not known here: give all of it, or a URL"
        path = os.path.normpath(path)
        if not is_written and _root_of(path, self._packages) is not None:
            return _is_not_there(field, path) if os.path.isdir(os.path.dirname(path)) else None
        root = _root_of(path, self._shared)
        if root is None and not self._one_machine:
            return self._elsewhere(field, given)
        if root is not None and not self._one_machine and not os.path.isdir(root):
            return None  # the workers see the shared folder, and this machine does not
        if roots is not None:
            own = root_of(path, roots)  # None for a working_dir, which roots do not limit
            if own is None:
                return None
            own = own.removeprefix("file://")
            return _not_written_below(own, path, self._same_user) if is_written else _not_read_below(own, path)
        return _cannot_be_written(path, self._same_user) if is_written else _is_not_there(field, path)

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


def named_paths(asked: AnySpec) -> Iterator[tuple[str, str, bool]]:
    """Yield (field, path or URL, whether it is written) for all files that the workers need.

    Ids of models on a hub are left out.
    """
    if asked.working_dir is not None:
        yield "working_dir", asked.working_dir, False
    spec = trained_job(asked)
    if spec is None:
        return
    yield "storage_path", spec.storage_path, True
    model = spec.model.path
    if run_named(model) is None and not _HUB_ID.fullmatch(model):
        yield "model.path", model, False
    yield from ((name, source.path, False) for name, source in numbered(spec.sources))
    yield from (("eval.lm_eval.tasks", task, False) for task in spec.eval.lm_eval.tasks if is_task_file(task))


def _is_not_there(field: str, path: str) -> str | None:
    if field == "working_dir":
        return None if os.path.isdir(path) else f"{path} is no folder, or cannot be read"
    if field.startswith(("data.", "eval.")):
        path = _before_glob(path)
    return None if os.access(path, os.R_OK) else _not_there(path)


def _before_glob(path: str) -> str:
    """Return the directory where a glob begins: matching the whole glob may take forever."""
    while glob.has_magic(path):
        path = os.path.dirname(path)
    return path


def _not_there(path: str) -> str:
    return f"{path} is not there, or cannot be read"


def _not_writable(path: str) -> str:
    return f"{path} cannot be written to: give a directory, or the path of one that can be made"


def _cannot_be_written(path: str, same_user: bool) -> str | None:
    """Return a problem unless the path is a directory, or can be created, as far as this process can tell."""
    there = path
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    fits = os.path.isdir(there) and (not same_user or os.access(there, os.W_OK | os.X_OK))
    return None if fits else _not_writable(path)


def _not_read_below(root: str, path: str) -> str | None:
    """Check a path below a tenant's root without following links. Paths behind a link are not checked."""
    try:
        with beneath.opened(root, _names_below(root, _before_glob(path)), os.O_RDONLY | os.O_NONBLOCK):
            return None
    except OSError as error:
        return None if error.errno in _LEFT_TO_THE_JOB else _not_there(path)


def _not_written_below(root: str, path: str, same_user: bool) -> str | None:
    """Like `_not_read_below`, for a path that the workers write."""
    try:
        return None if _has_writable_part(root, _names_below(root, path), same_user) else _not_writable(path)
    except OSError as error:
        hidden = isinstance(error, PermissionError) and not same_user
        return None if hidden or error.errno in _LEFT_TO_THE_JOB else _not_writable(path)


def _names_below(root: str, path: str) -> tuple[str, ...]:
    return tuple(os.path.relpath(path, root).split("/")) if path != os.path.normpath(root) else ()


def _has_writable_part(root: str, names: Sequence[str], same_user: bool) -> bool:
    """Whether the deepest existing directory of the path can be written, as far as is known. Raises OSError."""
    for depth in range(len(names), -1, -1):
        with contextlib.suppress(FileNotFoundError), beneath.opened(root, names[:depth]) as handle:
            return not same_user or os.access(".", os.W_OK | os.X_OK, dir_fd=handle)
    return False
