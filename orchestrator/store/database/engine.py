"""Open the database of a store: created if needed, with the newest schema."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, inspect, text
from sqlalchemy.pool import QueuePool, StaticPool

from orchestrator.queue.errors import QueueError
from orchestrator.store.database.database import BUSY_S, Address, Database, address_of
from orchestrator.store.database.schema import METADATA, REVISION, VERSION_TABLE

_CONNECT_S = 10
# `pool_size` connections stay open; more are opened while many threads need one at once.
_POOL: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 8, "max_overflow": 24, "pool_timeout": BUSY_S}
_SQLITE = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA journal_size_limit = 67108864",  # bytes; size to which the log is cut after a burst of writes
)
# Without these limits, a client that is frozen inside a transaction holds up all others while its machine stays frozen.
_POSTGRES = (
    f"SET lock_timeout = '{BUSY_S:.0f}s'",
    f"SET statement_timeout = '{4 * BUSY_S:.0f}s'",
    f"SET idle_in_transaction_session_timeout = '{BUSY_S:.0f}s'",
)
# Options of libpq, in seconds except for the last, which is in milliseconds. With them, a vanished host is noticed
# within BUSY_S. By default it takes a quarter of an hour (waiting for an answer) or forever (a connection without
# traffic).
_POSTGRES_CONNECTION: dict[str, Any] = {
    "connect_timeout": _CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": int(BUSY_S * 1000),
}
SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 0x666C6565  # key of an advisory lock of PostgreSQL; an arbitrary number that other programs are unlikely to use
_one_at_a_time = threading.Lock()  # alembic keeps its state in module variables


def open_database(text: str) -> Database:
    """Open a database and migrate it. Raises QueueError or StoreBroken, as `orchestrator.store.open_store` does."""
    address = address_of(text)
    if address.file is not None:
        _make_file(address.file)
    with contextlib.ExitStack() as on_error:
        database = Database(_postgres(address) if address.on_a_server else _sqlite(address), address)
        on_error.callback(database.close)
        if address.file is not None:
            _keep_a_wal(database)
        migrate(database)
        on_error.pop_all()
    return database


def _make_file(path: Path) -> None:
    """Create the file, readable for its owner only, since it holds digests of tokens. SQLite's side files get its mode.

    An existing file must not be opened here: closing it would drop the locks that other connections of this process
    hold on it (POSIX). Therefore the new file is created without opening it.
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
        connection.isolation_level = None  # no implicit transactions
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
    """Switch the file to write-ahead logging, which persists.

    SQLite needs exclusive access for the switch, and does not wait for it, so this function retries.
    """
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


def migrate(database: Database, scripts: Path = SCRIPTS, newest: str = REVISION) -> None:
    """Bring the schema up to date in one transaction. Other processes that open the database wait for it.

    Raises:
        QueueError: a newer release has written it, or it belongs to another program.
        StoreBroken: it cannot be read or written at the moment.
    """
    try:
        with database.read() as connection:
            if _revision(connection) == newest:
                return
        with _one_at_a_time, database.write() as connection:
            _upgrade(connection, database, scripts, newest)
    except exc.ProgrammingError as error:  # for example "permission denied for schema public"
        said = " ".join(str(error.orig).split())
        raise QueueError(f"{database.address.label} cannot be brought to schema {newest}: {said}") from error


def _upgrade(connection: Connection, database: Database, scripts: Path, newest: str) -> None:
    if database.address.on_a_server:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    found = _revision(connection)
    if found == newest:
        return
    # Imported here, since alembic is slow to import and not needed if the store is up to date.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(str(scripts)).walk_revisions()}
    if found is not None and found not in known:
        raise QueueError(
            f"{database.address.label} was written by a newer release: its schema is {found}, and this release knows "
            f"schemas up to {newest}. Upgrade Fleetune"
        )
    if found is None and (others := _tables_of_others(connection, database)):
        raise QueueError(f"{database.address.label} is somebody else's: it has a table {others[0]!r}")
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    command.upgrade(config, newest)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _tables_of_others(connection: Connection, database: Database) -> list[str]:
    """Return tables of other programs.

    A SQLite file must be ours alone; on a server only our table names must be free.
    """
    names = sorted(set(inspect(connection).get_table_names()) - {VERSION_TABLE})
    return [name for name in names if name in METADATA.tables] if database.address.on_a_server else names
