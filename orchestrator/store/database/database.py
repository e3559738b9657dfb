"""Transactions on a database, and the errors when one fails.

Exceptions of the driver are translated here. IntegrityError passes through, because it answers a question of the
caller, such as whether a tenant exists. Errors that come from mistakes in our own SQL pass through, too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator

from sqlalchemy import Connection, Engine, exc

from cluster.errors import FleetuneError
from orchestrator.queue.errors import QueueError, StoreBroken
from orchestrator.store.database.address import Address
from orchestrator.store.database.unreadable import OPTION, Unread

BUSY_S = 30.0
_BROKEN = (exc.OperationalError, exc.InternalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError)
_DATABASE = (exc.DatabaseError, sqlite3.DatabaseError)
_UNFIT = (exc.DataError, OverflowError, UnicodeEncodeError)  # a value that the database cannot hold


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


def _begin(connection: Connection) -> None:
    """Begin a transaction of SQLite. The driver does not begin one itself (`orchestrator.store.database.engine`).

    IMMEDIATE: a transaction that reads first and then writes would fail instead of wait if another one wrote in
    between. SQLAlchemy's event "begin" is not used, because an engine with such an event takes twice as long for every
    statement.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute("BEGIN IMMEDIATE")
