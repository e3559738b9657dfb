"""Lists the files that a path, directory, glob or URL of the spec means. Light to import."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Any

from cluster.errors import DataError, StorageError, StorageOutage
from cluster.text import did_you_mean
from jobs.data.sources.dataset_dirs import HIDDEN, files_in
from jobs.data.sources.records import is_unicode, suffix_of
from jobs.spec.data import DATA_SUFFIXES
from jobs.storage import files as storage
from jobs.storage.outages import is_outage


def expand(pattern: str) -> tuple[str, ...]:
    """List the files that a path, directory, glob or fsspec URL means, sorted; local ones as absolute paths.

    A directory means the dataset that `datasets` saved there, or else all supported files under it. Files and
    directories whose names begin with "." or "_" are left out.

    Raises:
        DataError: no file matches, a directory has no supported file, or an ending is not supported; or the name of a
            file is not UTF-8, so that it cannot be written to the description of the prepared data.
        StorageOutage: the storage does not answer.
    """
    files = _meant(pattern)
    for file in files:
        if not is_unicode(file):
            shown = os.fsencode(file).decode(errors="backslashreplace")
            raise DataError(f"{shown}: rename it, because its name is not UTF-8")
    return files


def _meant(pattern: str) -> tuple[str, ...]:
    """List the files as `expand` does, whatever characters their names have."""
    try:
        fs, inner = storage.filesystem(pattern)
        fs.invalidate_cache()
        if _type_of(fs, inner) == "directory":
            return files_in(_path(fs, inner, pattern), DATA_SUFFIXES)
        names = _matches(fs, inner, pattern)
    except DataError:
        raise
    except StorageError as error:
        raise DataError(f"cannot look for {error}") from error
    except Exception as error:  # the client of an object store may raise anything
        kind = StorageOutage if is_outage(error, storage.is_local(pattern)) else DataError
        raise kind(f"cannot look for {pattern} ({error!r}): check the address, credentials and network") from error
    if not names:
        where = "" if inner == pattern else f" (looked for {inner})"
        near = _near(inner) if storage.is_local(pattern) else ""
        raise DataError(f"no file matches {pattern}{where}{near or '. Check the path in data.train and data.eval'}")
    files = tuple(sorted(_path(fs, name, pattern) for name in names))
    for file in files:
        suffix_of(file)
    return files


def _type_of(fs: Any, inner: str) -> str | None:
    """Return `storage.type_of`. Policies may forbid to look at a name that is not there, and permit to list it."""
    try:
        return storage.type_of(fs, inner)
    except PermissionError:
        if fs.isdir(inner):
            return "directory"
        if glob.has_magic(inner):
            return None
        raise


def _near(path: str) -> str:
    """Suggest a file of a similar name in the same directory."""
    try:
        names = os.listdir(os.path.dirname(path) or ".")
    except OSError:
        return ". That directory does not exist either: check the path in data.train and data.eval"
    return did_you_mean(os.path.basename(path), names)


def _path(fs: Any, name: str, pattern: str) -> str:
    return name if storage.is_local(pattern) else str(fs.unstrip_protocol(name))


def _matches(fs: Any, inner: str, pattern: str) -> list[str]:
    if _type_of(fs, inner) == "file":  # checked first, because the name of a file may contain brackets
        return [inner]
    if not glob.has_magic(inner):
        return []
    parts = inner.split("/")
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    shown = tuple(part[0] for part in parts[fixed:] if part.startswith(HIDDEN))  # the pattern asks for such names

    def is_hidden(name: str) -> bool:
        return any(part.startswith(HIDDEN) and part[0] not in shown for part in name.split("/")[fixed:])

    found = [str(name) for name in fs.glob(inner) if not is_hidden(str(name))]
    types = {name: _type_of(fs, name) for name in found}
    files = [name for name in found if types[name] == "file"]
    inside = {part for name in files for part in _folders(name)}
    for name in found:
        if name not in inside and types[name] == "directory":
            raise DataError(
                f"{_path(fs, name, pattern)} matches {pattern}, but is a directory: let the pattern name its files too "
                "(a/*/*.jsonl), or files only (a/*.jsonl)"
            )
    return files


def _folders(name: str) -> Iterator[str]:
    """Yield the directories above a file."""
    while "/" in name.strip("/"):
        name = name.rpartition("/")[0]
        yield name
