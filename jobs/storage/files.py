"""Files at a path or an fsspec URL. A file appears whole or not at all.

Every failure raises StorageError. Its subclass StorageOutage means that the same call may succeed later. Paths and URLs
that `jobs.storage.locations` does not allow raise StorageError before anything is opened.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import posixpath
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, Protocol, cast

import fsspec
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cluster.errors import StorageError, StorageOutage
from cluster.settings import extra_protocols
from jobs.storage import locations as location
from jobs.storage.direct_io import DirectFile
from jobs.storage.outages import cause_of_outage, is_outage
from jobs.storage.versioned import parse_versioned
from jobs.storage.without_links import remove_tree

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})


class Writable(Protocol):
    """What `open_write` yields."""

    def write(self, data: Any, /) -> int: ...


_UPLOAD_BYTES = 32 * 2**20
_UNFINISHED: Final = ".unfinished"  # end of the names of local files that are being written


def is_url(path: str) -> bool:
    """Whether `path` has a protocol, such as s3://bucket/key."""
    return "://" in path


def is_local(path: str) -> bool:
    return not is_url(path) or path.startswith("file://")


def local_path(path: str) -> str:
    """Remove file:// from a local path. Raises StorageError."""
    check_allowed(path)
    return path.removeprefix("file://")


def check_allowed(path: str) -> None:
    """Raise StorageError for a path or URL that may not be opened (see `jobs.storage.locations`)."""
    if (wrong := location.problem(path, extra_protocols())) is not None:
        raise StorageError(wrong)


join = posixpath.join


def filesystem(path: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `path`, and the path inside it.

    For the protocols in `location.PROTOCOLS`, nothing in the URL configures the file system. Credentials and endpoint
    come from the environment of this process.

    Raises:
        StorageError: the protocol is not allowed, or its library is not installed.
    """
    check_allowed(path)
    try:
        if is_local(path):
            return fsspec.filesystem("file"), os.path.abspath(local_path(path))
        protocol = path.partition("://")[0]
        if protocol in location.PROTOCOLS:
            fs = fsspec.filesystem(protocol)
            return fs, fs._strip_protocol(path)
        return cast(tuple[Any, str], url_to_fs(path))
    except (ValueError, ImportError, OSError) as error:
        raise StorageError(f"cannot open {path}: {error}") from error


@contextlib.contextmanager
def as_storage_error(what: str, path: str) -> Iterator[None]:
    """Turn what a storage library raises into a StorageError that says what was done with which path."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # the client of an object store may raise anything
        if is_outage(error, is_local(path)):
            cause = cause_of_outage(error, is_local(path))
            raise StorageOutage(f"cannot {what} {path}: {type(cause).__name__}: {cause}") from error
        raise StorageError(f"cannot {what} {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, not a directory"
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def reached(what: str, path: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of `path` and the path inside it, with errors as in `as_storage_error`."""
    with as_storage_error(what, path):
        yield filesystem(path)


def read_bytes(path: str) -> bytes:
    """Read a whole file. Raises StorageError."""
    with reached("read", path) as (fs, inner), fs.open(inner, "rb") as file:
        return cast(bytes, file.read())


def read_versioned(path: str, version: int, parse: Callable[[dict[str, Any]], Any] = dict) -> Any:
    """Read a JSON object with a `version`, and return what `parse` makes of it; None: there is no such file.

    Raises:
        StorageError: the file cannot be read, or as `parse_versioned` raises.
    """
    return parse_versioned(read_bytes(path), path, version, parse) if exists(path) else None


def exists(path: str) -> bool:
    """Whether there is such a file or directory. Raises StorageError if that is unknown, as on a mount that fails."""
    with reached("look at", path) as (fs, inner):
        fs.invalidate_cache()
        return type_of(fs, inner) is not None


def is_dir(path: str) -> bool:
    """Whether there is such a directory. Raises StorageError if that is unknown."""
    with reached("look at", path) as (fs, inner):
        fs.invalidate_cache()
        return type_of(fs, inner) == "directory"


def type_of(fs: Any, inner: str) -> str | None:
    """Return what an fsspec filesystem has at a path, as "file", "directory" or "other"; None if there is nothing.

    Its `exists`, `isfile` and `isdir` would take every error for an absent file.

    Raises:
        Exception: what there is cannot be told; any class, as of the client of an object store.
    """
    try:
        if isinstance(fs, LocalFileSystem):
            mode = os.stat(inner).st_mode
            return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
        return str(fs.info(inner)["type"])
    except OSError as error:
        if is_outage(error, local=False) or not (isinstance(error, FileNotFoundError) or error.errno in _ABSENT):
            raise
        return None


def size(path: str) -> int:
    """Return the size of a file in bytes. Raises StorageError."""
    with reached("look at", path) as (fs, inner):
        return int(fs.size(inner))


def size_of_dir(path: str) -> int:
    """Return the size of all files below a directory in bytes; 0 if it does not exist. Raises StorageError."""
    with reached("look at", path) as (fs, inner):
        fs.invalidate_cache()
        try:
            return int(fs.du(inner, total=True))
        except FileNotFoundError:
            return 0


def list_names(path: str) -> list[str]:
    """List the names directly under a directory, sorted; empty if it does not exist. Raises StorageError.

    Files that are still being written, or whose writer was killed, are left out.
    """
    with reached("list", path) as (fs, inner):
        fs.invalidate_cache()
        try:
            entries = fs.ls(inner, detail=False)
        except FileNotFoundError:
            return []
        names = {posixpath.basename(str(entry).rstrip("/")) for entry in entries} - {""}
        return sorted(name for name in names if not name.endswith(_UNFINISHED))


def write_bytes(path: str, content: bytes) -> None:
    """Write a file that appears whole or not at all. Raises StorageError.

    With a protocol that an administrator has added, others may see the file before it is whole.
    """
    with as_storage_error("write", path):
        if is_local(path):
            with _replacing(local_path(path)) as file:
                file.write(content)
            return
        fs, inner = filesystem(path)
        fs.pipe_file(inner, content)  # an object store shows an object only when it is complete


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """Open a new file beside `path`, and rename it to `path` if the context ends without an error."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def put_file(local: str, path: str, callback: Callback = DEFAULT_CALLBACK) -> None:
    """Move or copy a finished local file to `path`, where it appears whole or not at all. Raises StorageError."""
    with as_storage_error("write", path):
        if is_local(path):
            target = local_path(path)
            os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            with open(local, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(local, 0o644)
            _move(local, target)
            return
        fs, inner = filesystem(path)
        if path.partition("://")[0] not in location.PROTOCOLS:  # such as sftp; on s3 it would create a missing bucket
            fs.makedirs(posixpath.dirname(inner), exist_ok=True)
        fs.put_file(local, inner, callback=callback)


def put_dir(local: str, path: str, last: str = "") -> None:
    """Move or copy all files below a local directory. Raises StorageError.

    Args:
        last: name of a file that comes after all others.
    """
    found = (
        os.path.relpath(os.path.join(folder, name), local) for folder, _, names in os.walk(local) for name in names
    )
    for name in sorted(found, key=lambda name: (name == last, name)):
        put_file(os.path.join(local, name), join(path, *name.split(os.sep)))


def _move(source: str, target: str) -> None:
    try:
        os.replace(source, target)
    except OSError:  # the target is on another file system
        with _replacing(target) as file, open(source, "rb") as content:
            shutil.copyfileobj(content, file)
        os.unlink(source)


def move_file(source: str, target: str) -> None:
    """Move a file within one storage. Raises StorageError."""
    with as_storage_error("move", source):
        if is_local(source):
            os.makedirs(os.path.dirname(local_path(target)), exist_ok=True)
            os.replace(local_path(source), local_path(target))
            return
        fs, inner = filesystem(source)
        to = filesystem(target)[1]
        if source.partition("://")[0] not in location.PROTOCOLS:  # see `put_file`
            fs.makedirs(posixpath.dirname(to), exist_ok=True)
        if glob.has_magic(inner) or glob.has_magic(to):  # `mv` would take them for patterns
            fs.cp_file(inner, to)
            fs.rm_file(inner)
        else:
            fs.mv(inner, to)


@contextlib.contextmanager
def open_write(path: str) -> Iterator[Writable]:
    """Open a large file for writing as a stream. It appears whole when the context ends without an error, or never.

    Raises:
        StorageError: also when the storage is full.
    """
    with as_storage_error("write", path):
        if is_local(path):
            with _replacing(local_path(path)) as local:
                direct = DirectFile(local.fileno())
                yield direct
                direct.finish()
            return
        fs, inner = filesystem(path)
        file = fs.open(inner, "wb", block_size=_UPLOAD_BYTES)
        try:
            yield file
            file.close()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to raise
                file.discard()
                file.closed = True  # otherwise its destructor would finish the upload
            raise


def read_range(path: str, begin: int, end: int) -> bytes:
    """Read the bytes begin .. end - 1; fewer if the file is shorter. Raises StorageError."""
    with reached("read", path) as (fs, inner):
        return cast(bytes, fs.cat_file(inner, start=begin, end=end))


@contextlib.contextmanager
def open_read(path: str) -> Iterator[BinaryIO]:
    """Open a seekable binary file. Raises StorageError if it cannot be opened."""
    with reached("read", path) as (fs, inner):
        file = fs.open(inner, "rb")
    with file:
        yield cast(BinaryIO, file)


def fetch_dir(path: str, target: str) -> None:
    """Copy a directory from a path or URL to a local directory. Raises StorageError."""
    with reached("fetch", path) as (fs, inner):
        fs.invalidate_cache()
        found = [str(name) for name in fs.find(inner)]  # names, since `get` would take brackets for patterns
        if not found and type_of(fs, inner) != "directory":
            raise FileNotFoundError(inner)
        start = len(inner.rstrip("/")) + 1
        places = [os.path.join(target, *name[start:].split("/")) for name in found]
        for folder in {target, *map(os.path.dirname, places)}:
            os.makedirs(folder, exist_ok=True)
        fs.get(found, places)


def remove_dir(path: str) -> None:
    """Remove a directory and its content; do nothing if it does not exist. Raises StorageError."""
    with reached("remove", path) as (fs, inner), contextlib.suppress(FileNotFoundError):
        if is_local(path):
            remove_tree(inner)
        elif glob.has_magic(inner):  # `rm` would take it for a pattern
            fs.invalidate_cache()
            for name in fs.find(inner):
                fs.rm_file(name)
        else:
            fs.rm(inner, recursive=True)


def remove_file(path: str) -> None:
    """Remove a file; do nothing if it does not exist. Raises StorageError."""
    with reached("remove", path) as (fs, inner), contextlib.suppress(FileNotFoundError):
        fs.rm_file(inner)


def _nearest(path: str) -> str:
    """Return the nearest existing directory at or above a local path, so that a check creates no directory."""
    if not is_local(path):
        return path
    folder = os.path.abspath(local_path(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def check_writable(path: str) -> None:
    """Write and remove a small file under `path`, or under the nearest directory that exists.

    Raises:
        StorageError: the directory is not writable; the message has the storage's answer, and what to change.
    """
    nearest = _nearest(path)
    if is_local(nearest) and not os.path.isdir(local_path(nearest)):
        raise StorageError(
            f"storage_path {path} is not writable: {nearest} is not a directory. Choose a directory or URL you own."
        )
    probe = join(nearest, f".probe-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"fleetune")
        fs, inner = filesystem(probe)
        fs.rm(inner)
    except StorageOutage:
        raise
    except Exception as error:
        if isinstance(error.__cause__, FileNotFoundError) and not is_local(path):
            what = "there is no such bucket or container. Make it first, or correct the name"
            raise StorageError(f"storage_path {path} is not writable: {what}") from error
        raise StorageError(
            f"storage_path {path} is not writable: {error}. Choose a directory or URL you own."
        ) from error
