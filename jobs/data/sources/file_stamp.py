"""What tells one state of a source file from another without reading it. Light to import."""

from __future__ import annotations

import os
from typing import Any, cast

from jobs.errors import DataError
from jobs.storage import files as storage

# Whatever of these a store tells of a file; they change when the file is written again.
_VERSIONS = (
    "ETag",
    "etag",
    "VersionId",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "created",
    "Content-MD5",
)


def stamp(file: str) -> tuple[str, ...]:
    """A cheap identity of what a file holds now: equal before and after, so it was not written in between.

    Local files have their size, time and inode; others their size and the versions that the store tells, which may be
    none, as with some HTTP servers.

    Raises:
        DataError: there is no such file, or the store does not answer.
    """
    if storage.is_local(file):
        try:
            found = os.stat(storage.local_path(file))
        except OSError as error:
            raise DataError(f"cannot look at {file}: {error}") from error
        return (str(found.st_size), str(found.st_mtime_ns), str(found.st_ino))
    info = info_of(file, fresh=True)
    versions = (f"{key}={info[key]}" for key in _VERSIONS if info.get(key))
    return (str(info.get("size")), *versions)


def info_of(file: str, fresh: bool) -> dict[str, Any]:
    """What the filesystem tells of a file; if `fresh`, not from its cache of listings. Raises DataError."""
    try:
        fs, inner = storage.filesystem(file)
        if fresh:
            fs.invalidate_cache()
        return cast(dict[str, Any], fs.info(inner))
    except FileNotFoundError as error:
        raise DataError(f"cannot read {file}: no such file") from error
    except Exception as error:  # object stores raise whatever their client raises
        raise DataError(f"cannot look at {file}: {type(error).__name__}: {error}") from error
