"""Files of a run, read on behalf of people. Whoever writes the run may be anybody: on a local disk no link that lies in
it is followed, and nothing is read that is no plain file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from jobs import storage
from jobs.errors import StorageError


def names(run: str, folder: str) -> list[str]:
    """What lies in one of the run's own folders; nothing where it is none. Raises StorageError."""
    if not storage.is_local(run):
        return storage.list_names(storage.join(run, folder))
    try:
        with _inside(run, (folder,), os.O_DIRECTORY) as handle:
            return sorted(os.listdir(handle))
    except OSError:
        return []


def read(run: str, folder: str, name: str, begin: int, most: int) -> bytes:
    """Up to `most` bytes of a file in one of the run's own folders, from a byte on. Raises StorageError."""
    path = storage.join(run, folder, name)
    if not storage.is_local(run):
        size = storage.size(path)  # object stores take it for a mistake to ask for what lies behind the end
        return storage.read_range(path, begin, min(begin + most, size)) if begin < size else b""
    try:
        with _inside(run, (folder, name), os.O_NONBLOCK) as handle:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise StorageError(f"{path} is no file")
            return os.pread(handle, most, begin)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def _inside(run: str, parts: Sequence[str], flags: int) -> Iterator[int]:
    """A handle of what lies below the folder of runs, to which alone links may lead. Raises OSError."""
    above, name = os.path.split(storage.local_path(run).rstrip("/"))
    handle = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
    steps = (name, *parts)
    try:
        for number, step in enumerate(steps, 1):
            how = flags if number == len(steps) else os.O_DIRECTORY
            inner = os.open(step, os.O_RDONLY | os.O_NOFOLLOW | how, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)
