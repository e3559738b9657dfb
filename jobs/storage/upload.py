"""Uploads a local file or directory to a path or URL. Start with `plan_upload`, which writes nothing.

Each file appears whole. `config.json`, without which a directory does not count as a model, is sent last, and removed
before a file beside it is replaced. An interrupted upload continues with the files that the target does not have yet.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fsspec.callbacks import Callback

from cluster.errors import InputError, StorageError
from jobs.storage import files as storage
from jobs.storage.listing import modified_s

__all__ = ["Upload", "plan_upload", "upload"]

_LAST: Final = "config.json"
_UNFINISHED: Final = ".uploading"  # ends the name of a file that is being written to a disk
_WHOLE_BYTES: Final = 2**20  # files up to this size are compared as a whole
_SAMPLE_BYTES: Final = 2**16  # compared at the start, at the end and at two places between them
_COPIED_BYTES: Final = 2**23  # copied at once
_SHOWN: Final = 5  # names in a message

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Source:
    """A local file. `name` is its path under the uploaded directory; empty if a single file is uploaded."""

    local: str
    name: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Upload:
    """A planned upload.

    Attributes:
        there: names of the files that the target has already.
        removed: names of the files to remove from the target first.
    """

    target: str
    files: tuple[Source, ...]
    there: frozenset[str]
    removed: tuple[str, ...]

    @property
    def sent(self) -> tuple[Source, ...]:
        return tuple(file for file in self.files if file.name not in self.there)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.sent)


def plan_upload(path: str, url: str, *, replace: bool = False) -> Upload:
    """Compare the local files with the target. Nothing is written.

    Args:
        url: the target. If it ends with a slash, the target is under it, by the local file's or directory's name.
        replace: allow files of the same name to be overwritten.

    Raises:
        InputError: there is nothing to upload, or the target holds something else.
        StorageError: the target cannot be read.
    """
    if not path or not url:
        raise InputError(f"the {'URL' if path else 'PATH'} is empty: is a variable not set?")
    local = os.path.abspath(os.path.expanduser(storage.local_path(path)))
    if storage.is_url(path) and not storage.is_local(path):
        raise InputError(f"{path} is a URL already: workers read it as it is")
    target = _target(local, url)
    _check_apart(local, target)
    files = tuple(sorted(_sources(local, ""), key=lambda file: (_is_last(file.name), file.name)))
    if not files:
        raise InputError(f"{path} is an empty directory: there is nothing to upload")
    known = _listed(target, os.path.isdir(local))
    there = {file.name for file in files if file.name in known and _is_same(file, target, known[file.name])}
    _check_place(target, [file.name for file in files], known, set() if replace else known.keys() - there)
    removed = tuple(sorted(filter(_is_last, known))) if len(there) < len(files) else ()
    return Upload(target, files, frozenset(there.difference(removed)), removed)


def upload(plan: Upload, advance: Advance = lambda count: None) -> None:
    """Carry out the plan. `advance` gets the number of bytes as they are sent.

    Raises:
        StorageError: the upload is incomplete, or the local files changed during the upload.
    """
    for name in plan.removed:
        storage.remove_file(_place(plan.target, name))
    for file in plan.sent:
        _send(file, _place(plan.target, file.name), advance)
    found = {name: info.get("size") for name, info in _listed(plan.target, plan.files[0].name != "").items()}
    wrong = [file.name or plan.target for file in plan.files if found.get(file.name) != file.size]
    if wrong:
        raise StorageError(f"{plan.target} is incomplete ({_some(wrong)} of another size, or missing): upload again")


def _target(local: str, url: str) -> str:
    place = url if storage.is_url(url) else os.path.abspath(os.path.expanduser(url))
    return storage.join(place, os.path.basename(local)) if url.endswith("/") else place


def _check_apart(local: str, target: str) -> None:
    if storage.is_local(target):
        one, other = os.path.realpath(local), os.path.realpath(storage.local_path(target))
        if one == other or other.startswith(one + os.sep) or one.startswith(other + os.sep):
            raise InputError(f"{target} and {local} are the same place, or one lies in the other: choose another one")


def _sources(local: str, name: str, seen: frozenset[str] = frozenset()) -> Iterator[Source]:
    """List the files to upload. Links are followed, because the hub's cache consists of links. Raises InputError."""
    try:
        facts = os.stat(local)
        if stat.S_ISREG(facts.st_mode):
            yield Source(local, name, facts.st_size, facts.st_mtime_ns)
            return
        if not stat.S_ISDIR(facts.st_mode):
            raise InputError(f"{local} is neither a file nor a directory: leave it out")
        real = os.path.realpath(local)
        if real in seen:
            raise InputError(f"{local} leads back to {real}, which it lies in: remove that link")
        for entry in sorted(os.listdir(local)):
            yield from _sources(os.path.join(local, entry), posixpath.join(name, entry), seen | {real})
    except OSError as error:
        raise InputError(f"cannot read {local}: {error.strerror}") from error


def _is_last(name: str) -> bool:
    return posixpath.basename(name) == _LAST


def _place(target: str, name: str) -> str:
    return storage.join(target.rstrip("/"), name) if name else target


def _listed(target: str, is_dir: bool) -> dict[str, Mapping[str, Any]]:
    """Return what the storage reports about each file at the target, by name; the name is '' if the target is a file.

    Raises:
        InputError: the target is a file and a directory is to be uploaded, or the reverse.
        StorageError: the target cannot be read.
    """
    with storage.reached("look at", target) as (fs, inner):
        fs.invalidate_cache()
        found = fs.find(inner.rstrip("/") or inner, detail=True)
    root = inner.strip("/")
    names = {
        str(name).strip("/").removeprefix(root).strip("/"): info
        for name, info in found.items()
        if info.get("type") != "directory" and not name.endswith(_UNFINISHED)
    }
    if is_dir and "" in names:
        raise InputError(f"{target} is a file, and a directory is to be uploaded: choose another place")
    if not is_dir and names.keys() - {""}:
        raise InputError(f"{target} is a directory: give {target.rstrip('/')}/ to upload the file into it")
    return names


def _is_same(file: Source, target: str, info: Mapping[str, Any]) -> bool:
    """Whether the target has this file: of equal size, not older than the local one, and with equal samples.

    Small files are compared as a whole. Raises StorageError.
    """
    if info.get("size") != file.size:
        return False
    path = _place(target, file.name)
    with storage.as_storage_error("compare", path), open(file.local, "rb") as local:
        if file.size <= _WHOLE_BYTES:
            return local.read() == storage.read_bytes(path)
        written_s = modified_s(info)
        if written_s is None or int(written_s) < file.modified_ns // 10**9:  # object stores round to seconds
            return False
        last = file.size - _SAMPLE_BYTES
        for begin in (0, last // 3, last * 2 // 3, last):
            local.seek(begin)
            if local.read(_SAMPLE_BYTES) != storage.read_range(path, begin, begin + _SAMPLE_BYTES):
                return False
    return True


def _check_place(target: str, names: list[str], known: Mapping[str, Any], differ: set[str]) -> None:
    if others := sorted(known.keys() - set(names)):
        raise InputError(
            f"{target} has other files already ({_some(others)}). Choose a new place, because they would mix with the "
            "uploaded files"
        )
    if differ:
        which = f": {_some(sorted(differ))}" if differ != {""} else ""
        raise InputError(
            f"{target} exists already and differs, or cannot be compared{which}. Choose a new place "
            "(runs that have used it could not be repeated), or give --replace"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class _Progress(Callback):  # type: ignore[misc]  # fsspec carries no types
    """Passes on how many bytes have been sent."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance = advance

    def relative_update(self, inc: int = 1) -> None:
        self.value += inc
        self._advance(inc)


def _send(file: Source, path: str, advance: Advance) -> None:
    progress = _Progress(advance)
    with storage.as_storage_error("write", path):
        if storage.is_local(path):
            _copy(file, storage.local_path(path), progress)
        else:
            storage.put_file(file.local, path, progress)
        facts = os.stat(file.local)
    advance(file.size - progress.value)  # some file systems report no progress
    if (facts.st_size, facts.st_mtime_ns) != (file.size, file.modified_ns):
        storage.remove_file(path)
        raise StorageError(f"{file.local} changed during the upload: upload again when no program writes to it")


def _copy(source: Source, path: str, progress: _Progress) -> None:
    """Copy a file on disks: written beside its place, then renamed."""
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}{_UNFINISHED}")
    os.makedirs(folder, exist_ok=True)
    try:
        with open(source.local, "rb") as content, open(beside, "wb") as file:
            while some := content.read(min(_COPIED_BYTES, source.size - progress.value)):  # the file may grow
                progress.relative_update(file.write(some))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
