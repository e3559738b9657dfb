"""A local file or directory to a path or URL: whole or not at all, as far as the storage lets.

Where there is a rename, everything is written beside its place and moved there at the end. On an object store each
object appears whole; the files that make a directory a model come last, and sizes are compared at the end. What an
interrupted upload has left there is found to be the same, and passed over.
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
    """Carry it out. `advance` is told bytes as they are sent.

    Raises:
        StorageError: it could not be written whole, or the local files changed meanwhile.
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
    """All of it anew, beside its place; what was there is moved away first, and back again if the move fails."""
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
            with contextlib.suppress(Exception):  # the first error is the one to tell
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
    advance(file.size - sent.told)  # some file systems tell nothing
    facts = os.stat(file.local)
    if (facts.st_size, facts.st_mtime_ns) != file.stamp:
        raise StorageError(f"{file.local} was written to while it was uploaded: call again when nobody writes to it")


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _check_sizes(plan: Upload) -> None:
    found = {name: info.get("size") for name, info in listed(plan.target, plan.is_dir).items()}
    wrong = [file.name or plan.target for file in plan.files if found.get(file.name) != file.size]
    if wrong:
        raise StorageError(f"{plan.target} is not whole ({some(wrong)} of another size, or not there): call again")
