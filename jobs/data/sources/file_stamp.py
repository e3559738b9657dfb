"""Distinguishes states of a source file without reading it. Light to import."""

from __future__ import annotations

import os
from typing import Any, cast

from cluster.errors import DataError, StorageOutage
from jobs.storage import files as storage

# Facts that stores report about a file and that change when it is written again; which ones depends on the store.
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
    "blob_id",  # of the Hugging Face hub, as the next
    "xet_hash",
)


def stamp(file: str) -> tuple[str, ...]:
    """Return a cheap identity of a file's present content. If it is equal twice, the file was not written in between.

    For local files it is size, time and inode. For others it is the size and the versions that the store reports, of
    which there may be none, as with some HTTP servers.

    Raises:
        DataError: there is no such file, or it cannot be looked at.
        StorageOutage: the store does not answer.
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
    """Return what the filesystem reports about a file; if `fresh`, without its cache. Raises as `stamp` does."""
    try:
        fs, inner = storage.filesystem(file)
        if fresh:
            fs.invalidate_cache()
        return cast(dict[str, Any], fs.info(inner))
    except FileNotFoundError as error:
        raise DataError(f"cannot read {file}: no such file") from error
    except Exception as error:  # the client of an object store may raise anything
        kind = StorageOutage if storage.is_outage(error, storage.is_local(file)) else DataError
        raise kind(f"cannot look at {file}: {type(error).__name__}: {error}") from error
