"""Events, in the order of writing."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select

from orchestrator.queue.records import QueueEvent
from orchestrator.store import bulk_insert as bulk
from orchestrator.store.counters import take
from orchestrator.store.database.rows import event_of, event_values
from orchestrator.store.database.schema import EVENTS

_AFTER = select(EVENTS).where(EVENTS.c.number > bindparam("after")).order_by(EVENTS.c.number).limit(bindparam("limit"))
_OF_JOB = _AFTER.where(EVENTS.c.job_id == bindparam("job_id"))


def add(connection: Connection, events: Sequence[QueueEvent], newest: int) -> None:
    """Add events. `newest`: number of the previous event; the transaction has taken the following numbers."""
    bulk.add(connection, EVENTS, [event_values(event, newest + place) for place, event in enumerate(events, 1)])


def add_new(connection: Connection, events: Sequence[QueueEvent]) -> None:
    add(connection, events, take(connection, events=len(events)).event)


def after(connection: Connection, job_id: str | None, number: int, limit: int) -> list[QueueEvent]:
    given = {"after": number, "limit": max(limit, 0)}
    if job_id is None:
        return [event_of(row) for row in connection.execute(_AFTER, given)]
    return [event_of(row) for row in connection.execute(_OF_JOB, {**given, "job_id": job_id})]
