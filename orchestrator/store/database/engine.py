"""From the address of a store to a database that is ready: made if it was not there, and of the newest schema."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import QueuePool, StaticPool

from orchestrator.queue.errors import QueueError
from orchestrator.store.database.address import Address, address_of
from orchestrator.store.database.database import BUSY_S, Database
from orchestrator.store.database.migrate import migrate

_CONNECT_S = 10
# Connections are kept up to the size of the pool; more are made while many threads need one at once.
_POOL: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 8, "max_overflow": 24, "pool_timeout": BUSY_S}
_SQLITE = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA journal_size_limit = 67108864",  # bytes; what is left of the log after a burst
)
# A client that was frozen inside a transaction would hold all others up for as long as its machine stays frozen.
_POSTGRES = (
    f"SET lock_timeout = '{BUSY_S:.0f}s'",
    f"SET statement_timeout = '{4 * BUSY_S:.0f}s'",
    f"SET idle_in_transaction_session_timeout = '{BUSY_S:.0f}s'",
)
# Of libpq, in seconds but for the last, which is in milliseconds: a host that is gone is noticed within BUSY_S, where
# the system would wait for a quarter of an hour (answers) or for ever (connections without traffic).
_POSTGRES_CONNECTION: dict[str, Any] = {
    "connect_timeout": _CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": int(BUSY_S * 1000),
}


def open_database(text: str) -> Database:
    """Raises QueueError or StoreBroken, as `orchestrator.store.open_store` says."""
    address = address_of(text)
    if address.file is not None:
        _make_file(address.file)
    database = Database(_postgres(address) if address.on_a_server else _sqlite(address), address)
    try:
        if address.file is not None:
            _keep_a_wal(database)
        migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _make_file(path: Path) -> None:
    """For its owner alone: there are tokens' digests in it. SQLite gives the files beside it the same mode.

    An existing file must not be opened here: closing it would drop the locks that other connections of this process
    have on it (POSIX). So the new one is made without opening it.
    """
    if path.is_dir():
        raise QueueError(f"the store {path} is a directory: name a file in it, as {path / 'fleetune.db'}")
    if path.exists() and not path.is_file():
        raise QueueError(f"the store {path} is no regular file")
    if not path.parent.is_dir():
        raise QueueError(f"the store {path} cannot be made: there is no directory {path.parent}")
    try:
        with contextlib.suppress(FileExistsError):
            os.mknod(path, 0o600)
    except OSError as error:
        raise QueueError(f"the store {path} cannot be made: {error.strerror}") from error


def _sqlite(address: Address) -> Engine:
    pool = {"poolclass": StaticPool} if address.file is None else _POOL
    engine = create_engine(address.url, connect_args={"timeout": BUSY_S, "check_same_thread": False}, **pool)

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        for statement in _SQLITE:
            connection.execute(statement).close()

    return engine


def _postgres(address: Address) -> Engine:
    try:
        engine = create_engine(address.url, pool_pre_ping=True, connect_args=_POSTGRES_CONNECTION, **_POOL)
    except ModuleNotFoundError as error:
        raise QueueError("a store on PostgreSQL needs psycopg: pip install 'fleetune[postgres]'") from error

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        for statement in _POSTGRES:
            connection.execute(statement)
        connection.commit()

    return engine


def _keep_a_wal(database: Database) -> None:
    """The mode stays with the file. To change it SQLite needs the file alone, and does not wait for that itself."""
    deadline = time.monotonic() + BUSY_S
    with database.explained("opened"), contextlib.closing(database.engine.raw_connection()) as connection:
        while True:
            try:
                (mode,) = connection.cursor().execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    if mode != "wal":
        raise QueueError(f"{database.address.label} is on a file system without shared memory: use a local disk")
