"""Insert many rows at once: SQLAlchemy needs more time to check the values than SQLite needs to write them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sqlalchemy import Connection, Dialect, Insert, Table, insert

from orchestrator.store.database.rows import Values

_FEW = 8


def add(connection: Connection, table: Table, rows: Sequence[Values]) -> None:
    """Insert rows. They have all columns, in the table's order, with values of types that the driver accepts."""
    if not rows:
        return
    if len(rows) < _FEW or not connection.dialect.positional:
        connection.execute(_insert(table), rows)
        return
    connection.exec_driver_sql(_sql(table, connection.dialect), [tuple(row.values()) for row in rows])


@functools.cache
def _insert(table: Table) -> Insert:
    return insert(table)


@functools.lru_cache(maxsize=64)
def _sql(table: Table, dialect: Dialect) -> str:
    return str(insert(table).compile(dialect=dialect))
