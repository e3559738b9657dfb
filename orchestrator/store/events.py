"""Events, in the order of writing."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select

from orchestrator.queue.records import QueueEvent
from orchestrator.store.counters import take
from orchestrator.store.database.rows import add_rows, event_of, event_values
from orchestrator.store.database.schema import EVENTS

_AFTER = select(EVENTS).where(EVENTS.c.number > bindparam("after")).order_by(EVENTS.c.number).limit(bindparam("limit"))
_BEFORE = (
    select(EVENTS)
    .where(EVENTS.c.number < bindparam("before"), EVENTS.c.number > bindparam("after"))
    .order_by(EVENTS.c.number.desc())
    .limit(bindparam("limit"))
)
_OF_JOB = EVENTS.c.job_id == bindparam("job_id")
_AFTER_OF_JOB, _BEFORE_OF_JOB = _AFTER.where(_OF_JOB), _BEFORE.where(_OF_JOB)


def add(connection: Connection, events: Sequence[QueueEvent], newest: int) -> None:
    """Add events. `newest`: number of the previous event; the transaction has taken the following numbers."""
    add_rows(connection, EVENTS, [event_values(event, newest + place) for place, event in enumerate(events, 1)])


def add_new(connection: Connection, events: Sequence[QueueEvent]) -> None:
    add(connection, events, take(connection, events=len(events)).event)


def page(
    connection: Connection,
    job_id: str | None = None,
    *,
    after: int = 0,
    before: int | None = None,
    limit: int = 1000,
) -> list[QueueEvent]:
    given = {"after": after, "before": before, "limit": max(limit, 0), "job_id": job_id}
    of_all, of_job = (_AFTER, _AFTER_OF_JOB) if before is None else (_BEFORE, _BEFORE_OF_JOB)
    return [event_of(row) for row in connection.execute(of_all if job_id is None else of_job, given)]
