"""Distinguishes states of a source file without reading it. Light to import."""

from __future__ import annotations

import os
from typing import Any, cast

from cluster.errors import DataError, StorageOutage
from jobs.storage import files as storage
from jobs.storage.listing import version_of
from jobs.storage.outages import is_outage


def stamp(file: str) -> tuple[str, ...]:
    """Return a cheap identity of a file's present content. If it is equal twice, the file was not written in between.

    For local files it is size, time and inode. For others it is the size and the version that the store reports, if it
    reports one (see `version_of`).

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
    version = version_of(info)
    return (str(info.get("size")), *(() if version is None else (version,)))


def stamp_elsewhere(file: str, there: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stamp that a file must keep on this host while it is read, if another host has stamped it before.

    Copies on the disks of several nodes, and a bucket that each of them mounts, have different times and inodes. So of
    the other host's stamp of a local file, only the size counts. If the size differs, the other host's stamp is
    returned, and the file counts as changed.

    Raises:
        DataError, StorageOutage: as `stamp`.
    """
    here = stamp(file)
    return here if storage.is_local(file) and here[0] == there[0] else there


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
        kind = StorageOutage if is_outage(error, storage.is_local(file)) else DataError
        raise kind(f"cannot look at {file}: {type(error).__name__}: {error}") from error
