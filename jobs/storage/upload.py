"""Uploads a local file or directory to a path or URL, whole or not at all, as far as the storage allows.

If the storage can rename, everything is written beside its place and moved there at the end. On an object store each
object appears whole. The files that make a directory a model are sent last, and sizes are compared at the end. Files
that an interrupted upload has sent are found to be equal, and are not sent again.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
from collections.abc import Callable
from typing import Any

from fsspec.callbacks import Callback

from jobs.errors import StorageError
from jobs.storage import files as storage
from jobs.storage.upload_plan import Source, Upload, listed, some, told

__all__ = ["upload"]

_RENAMES = frozenset({"file", "local", "sftp", "ssh", "smb", "hdfs", "arrow_hdfs", "webhdfs"})
Advance = Callable[[int], None]


def upload(plan: Upload, advance: Advance = lambda count: None) -> None:
    """Carry out the plan. `advance` gets the number of bytes as they are sent.

    Raises:
        StorageError: the upload is incomplete, or the local files changed during the upload.
    """
    fs, inner = storage.filesystem(plan.target)
    if plan.sent and _renames(fs):
        _beside_and_move(fs, inner.rstrip("/"), plan, advance)
    else:
        for file in plan.sent:
            _put(fs, file, _inside(inner, file), plan.target, advance)
    _check_sizes(plan)


def _inside(inner: str, file: Source) -> str:
    return storage.join(inner.rstrip("/"), file.name) if file.name else inner


def _renames(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not _RENAMES.isdisjoint(protocols)


def _beside_and_move(fs: Any, inner: str, plan: Upload, advance: Advance) -> None:
    """Write everything beside its place, then swap it with what was there, which is put back if the move fails."""
    folder, name = posixpath.split(inner)
    token = secrets.token_hex(4)
    new, old = (posixpath.join(folder, f".{name}.{what}-{token}") for what in ("uploading", "replaced"))
    with told("write", plan.target):
        try:
            for file in plan.files:
                _put(fs, file, _inside(new, file), plan.target, advance if file.name not in plan.there else _quietly)
            was_there = fs.exists(inner)
            if was_there:
                fs.mv(inner, old, recursive=True)
            try:
                fs.mv(new, inner, recursive=True)
            except BaseException:
                if was_there:
                    fs.mv(old, inner, recursive=True)
                raise
            if was_there:
                fs.rm(old, recursive=True)
        finally:
            with contextlib.suppress(Exception):  # the first error is the one to raise
                if fs.exists(new):
                    fs.rm(new, recursive=True)


def _quietly(count: int) -> None:
    pass


class _Bytes(Callback):  # type: ignore[misc]  # fsspec carries no types
    """Passes on how many bytes have been sent."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance, self.told = advance, 0

    def relative_update(self, inc: int = 1) -> None:
        self.told += inc
        self._advance(inc)


def _put(fs: Any, file: Source, inner: str, target: str, advance: Advance) -> None:
    sent = _Bytes(advance)
    with told("write", target):
        if _renames(fs):
            fs.makedirs(posixpath.dirname(inner), exist_ok=True)
        fs.put_file(file.local, inner, callback=sent)
        if storage.is_local(target):
            _sync(inner)
    advance(file.size - sent.told)  # some file systems report no progress
    facts = os.stat(file.local)
    if (facts.st_size, facts.st_mtime_ns) != file.stamp:
        raise StorageError(f"{file.local} changed during the upload: upload again when no program writes to it")


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _check_sizes(plan: Upload) -> None:
    found = {name: info.get("size") for name, info in listed(plan.target, plan.is_dir).items()}
    wrong = [file.name or plan.target for file in plan.files if found.get(file.name) != file.size]
    if wrong:
        raise StorageError(f"{plan.target} is incomplete ({some(wrong)} of another size, or missing): upload again")
