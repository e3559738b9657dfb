"""Lists all files under a path or URL at once with sizes and times, and tells their versions, without opening them."""

from __future__ import annotations

import contextlib
import datetime
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.storage import files as storage

# Keys under which file systems of fsspec report when a file was written; the first that is present counts.
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
# Keys under which they report what changes when a file is written again, the most exact first. Those of the hub's
# repositories have only `blob_id` and `xet_hash`.
_VERSIONS = ("ETag", "etag", "blob_id", "xet_hash", "generation", "VersionId", "Content-MD5", "Last-Modified", *_TIMES)


@dataclass(frozen=True, order=True)
class Listed:
    """A file in a listing.

    Attributes:
        name: path relative to the directory that was listed, with `/`.
        modified_s: time of the last write, in seconds since 1970; None if the storage does not report it.
    """

    name: str
    size: int
    modified_s: float | None


def listing(path: str) -> tuple[Listed, ...]:
    """List all files under a directory, sorted by name; empty if the directory does not exist.

    A link is listed as a file; directories behind links are not entered.

    Raises:
        StorageError: the directory cannot be listed.
    """
    with storage.as_storage_error("list", path):
        if storage.is_local(path):
            return tuple(sorted(_local(storage.local_path(path).rstrip("/") or "/", "")))
        return tuple(sorted(_remote(path)))


def _local(folder: str, prefix: str) -> Iterator[Listed]:
    """List a local directory. Files that are removed in the meantime are left out."""
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


def version_of(info: Mapping[str, Any]) -> str | None:
    """Return what tells states of a file with the same size apart, from what its fsspec file system reports.

    None if the file system reports nothing of the kind, as with some HTTP servers.
    """
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), None)


def modified_s(info: Mapping[str, Any]) -> float | None:
    """Return when a file was written, from what its fsspec file system reports."""
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            known = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
            return known.timestamp()
    return None
