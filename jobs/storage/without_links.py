"""Accesses files below a trusted directory without following links below it.

Any tenant may write a run, and may replace each of its files and directories by a link at any time. Checking a path
before using it would be too early, so every name is opened relative to the directory that holds it
(openat with O_NOFOLLOW). Links that lead to the trusted directory itself are followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def opened(base: str, names: Sequence[str], flags: int = _DIRECTORY) -> Iterator[int]:
    """Open `base/names...`, which must be a directory unless `flags` say otherwise, and yield its descriptor.

    Raises:
        OSError: one of the names is a link (ELOOP or ENOTDIR), is missing, or cannot be opened.
    """
    handle = os.open(base, _DIRECTORY)
    try:
        for number, name in enumerate(names, 1):
            how = flags if number == len(names) else _DIRECTORY
            inner = os.open(_checked(name), how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def names_in(base: str, names: Sequence[str]) -> list[str]:
    """List the names in a directory, sorted; empty if it is missing. Raises OSError."""
    try:
        with opened(base, names) as handle:
            return sorted(os.listdir(handle))
    except FileNotFoundError:
        return []


def is_link(base: str, names: Sequence[str]) -> bool:
    """Whether the last name is a link; False if it is missing. Raises OSError."""
    *above, name = names
    with contextlib.suppress(FileNotFoundError), opened(base, above) as handle:
        return stat.S_ISLNK(os.stat(_checked(name), dir_fd=handle, follow_symlinks=False).st_mode)
    return False


def read(base: str, names: Sequence[str], begin: int, most: int) -> bytes:
    """Read up to `most` bytes of a regular file, starting at byte `begin`. Raises OSError."""
    with opened(base, names, os.O_RDONLY | os.O_NONBLOCK) as handle:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{names[-1]} is not a regular file")
        return os.pread(handle, most, begin)


def size(base: str, names: Sequence[str]) -> int:
    """Return the bytes of a file. Raises OSError."""
    with opened(base, names, os.O_RDONLY | os.O_NONBLOCK) as handle:
        return os.fstat(handle).st_size


def remove(base: str, names: Sequence[str]) -> None:
    """Remove a file, a link or a directory with its content. Nothing behind a link is touched.

    A missing file is ignored. Raises OSError.
    """
    *above, name = names
    with contextlib.suppress(FileNotFoundError), opened(base, above) as handle:
        if stat.S_ISDIR(os.stat(_checked(name), dir_fd=handle, follow_symlinks=False).st_mode):
            remove_tree(name, handle)
        else:
            os.unlink(name, dir_fd=handle)


def remove_tree(path: str, dir_fd: int | None = None) -> None:
    """Remove a directory, also while another process removes it. Nothing behind a link is touched.

    A missing directory is ignored. Raises OSError.
    """
    shutil.rmtree(path, onerror=_unless_gone, dir_fd=dir_fd)  # see `shutil.rmtree.avoids_symlink_attacks`


def _unless_gone(function: object, path: str, failed: tuple[type, BaseException, object]) -> None:
    """Let `shutil.rmtree` go on where an entry is missing; without this, the rest of the directory would stay."""
    if not isinstance(failed[1], FileNotFoundError):
        raise failed[1]


def write(base: str, names: Sequence[str], content: bytes) -> None:
    """Write a file that appears whole, in an existing directory. A link of this name is replaced. Raises OSError."""
    *above, name = names
    beside = f".{_checked(name)}.{secrets.token_hex(8)}"
    with opened(base, above) as folder:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            raise


def _checked(name: str) -> str:
    if name in ("", ".", "..") or "/" in name:
        raise OSError(f"{name!r} is not the name of a file")
    return name
