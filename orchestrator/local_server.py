"""The server of this machine that uses FLEETUNE_HOME: its lock, and a file with its URL."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from cluster.errors import InputError, StorageError
from cluster.local.locks import try_lock
from orchestrator.client.discovery import RECORD, local_server

_LOCK = "server.lock"


class HomeTaken(InputError):
    """Another server uses this FLEETUNE_HOME."""


def make_home(home: Path) -> None:
    """Create the folder. Raises StorageError."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{home} cannot be made: {error.strerror}. Set FLEETUNE_HOME to another folder") from error


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Lock the folder. Raises HomeTaken or StorageError."""
    make_home(home)
    try:
        lock = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{home / _LOCK} cannot be opened: {error.strerror}") from error
    if not try_lock(lock):
        os.close(lock)
        other = local_server(home)
        where = f" at {other.url} (process {other.pid})" if other else ""
        raise HomeTaken(
            f"a server runs already{where} on the store in {home}: use that one, or give this one a store of its own "
            "with --store"
        )
    try:
        yield
    finally:
        os.close(lock)


def write_record(home: Path, url: str, embedded: bool) -> None:
    """Write the record of this process, atomically, for `orchestrator.client.discovery`."""
    new = home / f"{RECORD}.new"
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        record = {"url": url, "pid": os.getpid(), "version": version("fleetune"), "embedded": embedded}
        json.dump(record, file)
    new.replace(home / RECORD)


def remove_record(home: Path) -> None:
    """Remove the record, if it is that of this process."""
    found = local_server(home)
    if found is not None and found.pid == os.getpid():
        with contextlib.suppress(OSError):
            (home / RECORD).unlink(missing_ok=True)
