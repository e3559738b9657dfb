"""The address of a database, transactions on it, and the errors when one fails.

Exceptions of the driver are translated here. IntegrityError passes through, because it answers a question of the
caller, such as whether a tenant exists. Errors that come from mistakes in our own SQL pass through, too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, exc, make_url
from sqlalchemy.exc import ArgumentError

from cluster.errors import FleetuneError
from orchestrator.queue.errors import QueueError, StoreBroken
from orchestrator.store.database.unreadable import OPTION, Unread

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
BUSY_S = 30.0
_BROKEN = (exc.OperationalError, exc.InternalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError)
_DATABASE = (exc.DatabaseError, sqlite3.DatabaseError)
_UNFIT = (exc.DataError, OverflowError, UnicodeEncodeError)  # a value that the database cannot hold


@dataclass(frozen=True)
class Address:
    """The address of a store.

    Attributes:
        label: name of the store for messages.
        file: path of the SQLite file; None: in memory, or on a database server.
    """

    url: URL
    label: str
    file: Path | None = None

    @property
    def on_a_server(self) -> bool:
        return self.url.get_backend_name() == "postgresql"


def address_of(text: str) -> Address:
    """Parse an address. Raises QueueError."""
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return _file(text)
    if scheme == "sqlite":
        return _sqlite(rest)
    if scheme in _POSTGRES:
        return _postgres(text, rest)
    raise QueueError(f"a store is a path, sqlite:///path or postgresql://host/database, not {scheme}://...")


def _sqlite(rest: str) -> Address:
    if rest in ("", "/", "/:memory:"):
        return Address(URL.create("sqlite+pysqlite"), "the store in memory")
    if not rest.startswith("/") or "?" in rest:
        raise QueueError(f"sqlite://{rest}: write sqlite:///PATH, without options; with four slashes from the root")
    return _file(rest[1:])


def _file(text: str) -> Address:
    if not text:
        raise QueueError("the store has no path: name a file, as fleetune.db")
    path = Path(text).absolute()
    return Address(URL.create("sqlite+pysqlite", database=str(path)), f"the store {path}", path)


def _postgres(text: str, rest: str) -> Address:
    # A part of the password would pass for the host, and be shown.
    if rest.partition("?")[0].count("@") > 1:
        raise QueueError("the URL of the store has more than one '@': in a user or password, write %40")
    try:
        url = make_url(text).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        form = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        raise QueueError(f"the URL of the store cannot be read: write {form}, other characters as %XX") from None
    shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    return Address(url, f"the store {shown.render_as_string()}")


class Database:
    """A database, used by many threads at once.

    SQLite allows one writer, and makes the others retry with pauses, so that some could wait forever. Writers of this
    process therefore take turns with a lock. A database in memory has one connection, so readers take turns too.
    """

    def __init__(self, engine: Engine, address: Address) -> None:
        self.address, self.unread = address, Unread()
        self.engine = engine
        engine.update_execution_options(**{OPTION: self.unread})
        turn = threading.Lock()
        self._write_turn = None if address.on_a_server else turn
        self._read_turn = turn if address.file is None and not address.on_a_server else None

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reading.

        Each statement sees whole transactions; two statements may see different ones.
        """
        with self.explained("read"), self._in_turn(self._read_turn), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction for writing. It is committed at the end, or rolled back on an error."""
        with self.explained("written"), self._in_turn(self._write_turn), self.engine.connect() as connection:
            if not self.address.on_a_server:
                _begin(connection)
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def explained(self, done: str) -> Iterator[None]:
        """Translate failures of the driver to errors of the queue.

        Raises:
            StoreBroken: the database cannot be read or written at the moment.
            QueueError: the database can never hold the value, or is not a database.
        """
        try:
            yield
        except _UNFIT as error:
            raise QueueError(f"{self.address.label} cannot hold this: {self._said(error)}") from error
        except _BROKEN as error:
            if _exceeds_a_limit(error):
                raise QueueError(f"{self.address.label} cannot hold this: {self._said(error)}") from error
            raise self._broken(error, done) from error
        except _DATABASE as error:
            # A damaged file raises the class itself. Its other subclasses are mistakes in SQL.
            if type(error) not in _DATABASE:
                raise
            raise self._broken(error, done) from error

    def _broken(self, error: Exception, done: str) -> FleetuneError:
        code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_NOTADB:
            return QueueError(f"{self.address.label} is no store: the file is no SQLite database")
        return StoreBroken(f"{self.address.label} cannot be {done} now: {self._said(error)}")

    def _said(self, error: Exception) -> str:
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        password = self.address.url.password
        return said.replace(str(password), "***") if password else said

    @contextlib.contextmanager
    def _in_turn(self, turn: threading.Lock | None) -> Iterator[None]:
        if turn is None:
            yield
            return
        if not turn.acquire(timeout=BUSY_S):
            raise StoreBroken(f"{self.address.label} is busy: others have been writing for {BUSY_S:.0f} s")
        try:
            yield
        finally:
            turn.release()


def _exceeds_a_limit(error: Exception) -> bool:
    """Whether PostgreSQL refuses a value for its size (SQLSTATE class 54), which it reports as a failure to operate."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith("54")


def _begin(connection: Connection) -> None:
    """Begin a transaction of SQLite. The driver does not begin one itself (`orchestrator.store.database.engine`).

    IMMEDIATE: a transaction that reads first and then writes would fail instead of wait if another one wrote in
    between. SQLAlchemy's event "begin" is not used, because an engine with such an event takes twice as long for every
    statement.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute("BEGIN IMMEDIATE")
