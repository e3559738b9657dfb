"""Transactions, and what is said when one fails.

Exceptions of the driver end here. An IntegrityError passes through: it answers a question of whoever wrote, as whether
a tenant exists. So do mistakes in our own SQL.
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
    """An engine, used by many threads at once.

    SQLite has one writer, and lets the others try again after a while, so that some wait for ever. Those of this
    process wait here, in turn. In memory there is one connection, so readers wait too.
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
        """Each statement sees whole transactions; two statements may see different ones."""
        with self.explained("read"), self._in_turn(self._read_turn), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Committed at the end, or nothing of it."""
        with self.explained("written"), self._in_turn(self._write_turn), self.engine.connect() as connection:
            if not self.address.on_a_server:
                _begin(connection)
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def explained(self, done: str) -> Iterator[None]:
        """Failures of the driver become errors of the queue.

        Raises:
            StoreBroken: the database cannot be read or written now.
            QueueError: it can never hold this, or is no database.
        """
        try:
            yield
        except _UNFIT as error:
            raise QueueError(f"{self.address.label} cannot hold this: {self._said(error)}") from error
        except _BROKEN as error:
            raise self._broken(error, done) from error
        except _DATABASE as error:
            # The class itself is raised where a file is damaged; its other subclasses are mistakes in SQL.
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
    """Of SQLite. The driver begins no transaction itself (`orchestrator.store.database.engine`).

    IMMEDIATE: who reads first and then writes would be refused, not waited for, if somebody else wrote in between.
    Not by SQLAlchemy's event "begin": an engine with such an event takes twice as long for every statement.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute("BEGIN IMMEDIATE")
