"""What lies under a path or URL, in one listing: names, sizes and times, without opening a file."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import StorageError
from jobs.storage import files as storage

# Where the file systems of fsspec tell when a file was written; the first that is there counts.
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


@dataclass(frozen=True, order=True)
class Listed:
    """A file.

    Attributes:
        name: path under what was listed, with `/`.
        modified_s: when it was written, in seconds since 1970; None where the storage does not tell.
    """

    name: str
    size: int
    modified_s: float | None


def listing(path: str) -> tuple[Listed, ...]:
    """All files under a directory, sorted by name; none where there is no such directory.

    Links are listed as what they are: no directory behind one is looked into.

    Raises:
        StorageError: it cannot be listed.
    """
    try:
        if storage.is_local(path):
            return tuple(sorted(_local(storage.local_path(path).rstrip("/") or "/", "")))
        return tuple(sorted(_remote(path)))
    except StorageError:
        raise
    except Exception as error:  # object stores raise whatever their client raises
        raise StorageError(f"cannot list {path}: {type(error).__name__}: {error}") from error


def _local(folder: str, prefix: str) -> Iterator[Listed]:
    """Whatever is removed while this looks is passed over."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        try:
            facts = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(facts.st_mode):
            yield from _local(entry.path, f"{prefix}{entry.name}/")
        else:
            yield Listed(prefix + entry.name, facts.st_size, facts.st_mtime)


def _remote(path: str) -> Iterator[Listed]:
    fs, inner = storage.filesystem(path)
    fs.invalidate_cache()
    root = inner.strip("/") + "/"
    for name, info in fs.find(inner, detail=True).items():
        under = name.lstrip("/").removeprefix(root)
        if name.lstrip("/").startswith(root) and under and info.get("type") != "directory":
            yield Listed(under, int(info.get("size") or 0), modified_s(info))


def modified_s(info: Mapping[str, Any]) -> float | None:
    """When a file was written, from what a file system of fsspec tells about it."""
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, datetime.datetime):
            known = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
            return known.timestamp()
    return None


def _parsed(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
