"""Files of a run, read for users. Any tenant may have written them: see `jobs.storage.without_links`.

Records of metrics are read by number. Sizes of their parts are cached, so that earlier parts are not read again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from cluster.errors import StorageError, StorageOutage
from jobs.storage import files as storage
from jobs.storage import journal, strict_json
from jobs.storage import without_links as beneath
from jobs.storage.outages import is_outage
from orchestrator.queue.records import Job
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.roots import check_run, root_of

FOLDER = "metrics"
MOST_RECORDS = 1000
LARGEST_PART = 4 << 20  # bytes; a run writes parts of 1 MiB, and reading a larger one would hold up other callers
# A folder is missing, or is a link, which is not followed, or may not be read.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
_PARTS_KEPT = 100_000

_sizes: OrderedDict[tuple[str, str], int] = OrderedDict()  # (run, part) -> number of records; a part never changes
_lock = threading.Lock()


@dataclass(frozen=True)
class RunFiles:
    """A run whose files are read.

    Attributes:
        run: path or URL of the run.
        base: local directory above the run. Links below it are not followed. '': the run is at a URL.
    """

    run: str
    base: str

    @classmethod
    def of(cls, context: ServiceContext, job: Job) -> RunFiles | None:
        """Return the files of a job's run; None: it has no run.

        Raises QueueError: the run is outside of the tenant's roots.
        """
        if job.run is None:
            return None
        tenant = context.tenant(job.tenant)
        roots = tenant.restrictions.roots if tenant is not None else None
        check_run(job.job_id, job.run, roots)
        return cls.at(job.run, roots)

    @classmethod
    def at(cls, run: str, roots: tuple[str, ...] | None = None) -> RunFiles:
        """Return the files at a path or URL. Raises StorageError if the URL is not allowed."""
        storage.check_allowed(run)
        if not storage.is_local(run):
            return cls(run, "")
        path = storage.local_path(run).rstrip("/")
        root = root_of(path, roots) if roots is not None else None
        return cls(path, storage.local_path(root) if root is not None else os.path.dirname(path))

    def names(self, folder: str) -> list[str]:
        """List a folder of the run; empty if it does not exist, or if this server may not read it.

        Raises:
            StorageOutage: the file system does not answer now.
            StorageError: it cannot be listed for another reason.
        """
        path = storage.join(self.run, folder)
        if not self.base:
            return storage.list_names(path)
        try:
            return beneath.names_in(self.base, self._names(folder))
        except OSError as error:
            if error.errno in _NOT_THERE:
                return []
            raise _error_of("list", path, error) from error

    def read(self, folder: str, name: str, begin: int, most: int) -> bytes:
        """Read up to `most` bytes of a file in a folder of the run, from a byte on. Raises StorageError, StorageOutage.

        An empty `folder` means the run's directory itself.
        """
        inside = (folder, name) if folder else (name,)
        path = storage.join(self.run, *inside)
        if not self.base:
            size = storage.size(path)  # object stores refuse a range behind the end
            return storage.read_range(path, begin, min(begin + most, size)) if begin < size else b""
        try:
            return beneath.read(self.base, self._names(*inside), begin, most)
        except OSError as error:
            raise _error_of("read", path, error) from error

    def end(self, folder: str, name: str, most: int) -> tuple[int, bytes]:
        """Read the last `most` bytes of a file. Returns also the byte at which they begin. Errors: see `read`."""
        path = storage.join(self.run, folder, name)
        try:
            size = beneath.size(self.base, self._names(folder, name)) if self.base else storage.size(path)
        except OSError as error:
            raise _error_of("read", path, error) from error
        begin = max(size - most, 0)
        return begin, self.read(folder, name, begin, most)

    def _names(self, *inside: str) -> tuple[str, ...]:
        above = os.path.relpath(self.run, self.base).split("/")
        return (*above, *inside)


def _error_of(what: str, path: str, error: OSError) -> StorageError:
    kind = StorageOutage if is_outage(error, local=True) else StorageError
    return kind(f"cannot {what} {path}: {error.strerror or error}")


def records(files: RunFiles, after: int) -> tuple[dict[str, Any], ...]:
    """Return records from number `after` on. Numbers in them may be not finite. Raises StorageError."""
    found: list[dict[str, Any]] = []
    skip = after
    for part in filter(journal.is_part, files.names(FOLDER)):
        size = _known(files.run, part)
        if size is not None and size <= skip:
            skip -= size
            continue
        content = _read(files, part)
        found += content[skip:]
        skip = max(skip - len(content), 0)
        if len(found) >= MOST_RECORDS:
            break
    return tuple(found[:MOST_RECORDS])


def _read(files: RunFiles, part: str) -> list[dict[str, Any]]:
    run, content = files.run, files.read(FOLDER, part, 0, LARGEST_PART + 1)
    if len(content) > LARGEST_PART:
        raise StorageError(f"{part} of the metrics of {run} is larger than any part that a run writes")
    try:
        lines = [from_json(strict_json.with_numbers(line)) for line in content.splitlines()]
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{part} of the metrics of {run} is damaged: {error}") from error
    found = [one for one in lines if isinstance(one, dict)]
    with _lock:
        _sizes[run, part] = len(found)
        while len(_sizes) > _PARTS_KEPT:
            _sizes.popitem(last=False)
    return found


def _known(run: str, part: str) -> int | None:
    with _lock:
        return _sizes.get((run, part))
