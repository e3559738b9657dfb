"""Rows that this release cannot read. They are skipped and noted, so that the other rows can be read."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from orchestrator.queue.records import Job, UnreadableRow
from orchestrator.store.database.rows import job_of, problem_of

OPTION: Final = "fleetune_unread"  # engine option that holds the notes
_MOST_KEPT: Final = 10_000  # of each table: many jobs must not hide a token
Record = TypeVar("Record")


class Unread:
    """Notes on the unreadable rows that were found in one database. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: defaultdict[str, dict[str, UnreadableRow]] = defaultdict(dict)

    def __bool__(self) -> bool:
        with self._lock:
            return any(self._tables.values())

    def note(self, row: UnreadableRow) -> None:
        with self._lock:
            rows = self._tables[row.table]
            if row.name in rows or len(rows) < _MOST_KEPT:
                rows[row.name] = row

    def forget(self, table: str, names: Iterable[str]) -> None:
        """Remove the notes on rows that can be read now."""
        with self._lock:
            for name in names:
                self._tables[table].pop(name, None)

    def keep(self, table: str, names: Container[str]) -> None:
        """Remove the notes on rows that no longer exist. `names`: of the unreadable rows that do."""
        with self._lock:
            self._tables[table] = {name: row for name, row in self._tables[table].items() if name in names}

    def rows(self) -> list[UnreadableRow]:
        with self._lock:
            return [rows[name] for _, rows in sorted(self._tables.items()) for name in sorted(rows)]


def unread_of(connection: Connection) -> Unread:
    unread: Unread = connection.get_execution_options()[OPTION]
    return unread


def jobs_of(connection: Connection, rows: Iterable[Any]) -> list[Job]:
    """Return the jobs of the rows (JOB_COLUMNS) that can be read."""
    rows, unread = list(rows), unread_of(connection)
    try:
        found = list(map(job_of, rows))
    except Exception:  # any error in one row must not hide the others
        found = [job for row in rows if (job := _job_of(unread, row)) is not None]
    if unread:
        unread.forget("job", (job.job_id for job in found))
    return found


def _job_of(unread: Unread, row: Sequence[Any]) -> Job | None:
    try:
        return job_of(row)
    except Exception as error:
        unread.note(UnreadableRow("job", row[1], row[4], problem_of(row, error)))
        return None


def records_of(
    connection: Connection, table: str, rows: Iterable[Any], read: Callable[[Any], Record], *, is_all: bool = False
) -> list[Record]:
    """Return records of the readable rows of another table, whose first column names a row.

    Args:
        is_all: these are all rows of the table.
    """
    found, unread = [], unread_of(connection)
    good, bad = set[str](), set[str]()  # names of rows; several leases share the name of their job
    looks = bool(unread)
    for row in rows:
        try:
            found.append(read(row))
            if looks:
                good.add(str(row[0]))
        except Exception as error:
            bad.add(str(row[0]))
            unread.note(UnreadableRow(table, str(row[0]), None, f"{type(error).__name__}: {error}"))
    unread.forget(table, good - bad)
    if looks and is_all:
        unread.keep(table, bad)
    return found
