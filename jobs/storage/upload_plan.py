"""Plans an upload: which files to send, and which are already at the target. Nothing is written."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from jobs.errors import InputError, StorageError
from jobs.storage import files as storage
from jobs.storage.same_content import same

LAST: Final = ("config.json",)  # sent last, because a directory without it does not count as a model
SHOWN: Final = 5  # names in a message


@dataclass(frozen=True)
class Source:
    """A local file. `name` is its path under the uploaded directory; empty if a single file is uploaded."""

    local: str
    name: str
    size: int
    stamp: tuple[int, int]


@dataclass(frozen=True)
class Upload:
    """A planned upload. `there` are files that the target has already; `replaced` are files that it has differently."""

    target: str
    files: tuple[Source, ...]
    there: frozenset[str]
    replaced: frozenset[str]
    is_dir: bool

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
    is_dir = os.path.isdir(local)
    target = _target(local, url)
    _check_apart(local, target)
    files = tuple(sorted(_sources(local, ""), key=lambda file: (posixpath.basename(file.name) in LAST, file.name)))
    if not files:
        raise InputError(f"{path} is an empty directory: there is nothing to upload")
    known = listed(target, is_dir)
    there = frozenset(
        file.name
        for file in files
        if file.name in known and same(file.local, file.size, place_of(target, file), known[file.name])
    )
    replaced = frozenset(file.name for file in files if file.name in known) - there
    others = sorted(known.keys() - {file.name for file in files})
    _check_place(target, there, others, replaced if not replace else frozenset())
    return Upload(target, files, there, replaced, is_dir)


def _target(local: str, url: str) -> str:
    if not storage.is_url(url):
        place = os.path.abspath(os.path.expanduser(url))
        return os.path.join(place, os.path.basename(local)) if url.endswith("/") else place
    return storage.join(url, os.path.basename(local)) if url.endswith("/") else url


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
            yield Source(local, name, facts.st_size, (facts.st_size, facts.st_mtime_ns))
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


def listed(target: str, is_dir: bool) -> dict[str, dict[str, Any]]:
    """Return what the storage reports about each file at the target, by name; the name is '' if the target is a file.

    Raises:
        InputError: the target is a file and a directory is to be uploaded, or the reverse.
        StorageError: the target cannot be read.
    """
    with told("look at", target):
        fs, inner = storage.filesystem(target)
        fs.invalidate_cache()
        root = inner.strip("/")
        entries = fs.find(inner.rstrip("/") or inner, detail=True).items()
        found = {str(name): info for name, info in entries if info.get("type") != "directory"}
    names = {name.strip("/").removeprefix(root).strip("/"): info for name, info in found.items()}
    if is_dir and "" in names:
        raise InputError(f"{target} is a file, and a directory is to be uploaded: choose another place")
    if not is_dir and names.keys() - {""}:
        raise InputError(f"{target} is a directory: give {target.rstrip('/')}/ to upload the file into it")
    return names


def _check_place(target: str, there: frozenset[str], others: list[str], replaced: frozenset[str]) -> None:
    if others:
        raise InputError(
            f"{target} has other files already ({some(others)}). Choose a new place, because they would mix with the "
            "uploaded files"
        )
    if replaced:
        names = f": {some(sorted(replaced))}" if replaced != {""} else ""
        raise InputError(
            f"{target} exists already and differs, or cannot be compared{names}. Choose a new place "
            "(runs that have used it could not be repeated), or give --replace"
        )


def some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def place_of(target: str, file: Source) -> str:
    return storage.join(target.rstrip("/"), file.name) if file.name else target


@contextlib.contextmanager
def told(what: str, target: str) -> Iterator[None]:
    try:
        yield
    except (InputError, StorageError):
        raise
    except Exception as error:  # the client of an object store may raise anything
        raise StorageError(f"cannot {what} {target}: {type(error).__name__}: {error}") from error
