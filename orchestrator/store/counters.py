"""The counters that every write takes its numbers from. Their row serves as the write lock, and holds the leader."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from orchestrator.queue.errors import NotLeader
from orchestrator.queue.records import Leadership
from orchestrator.store.database.schema import QUEUE


class Numbers(NamedTuple):
    """The newest numbers in use. The writer continues with the next ones."""

    change: int
    job: int
    event: int


_TAKE = (
    update(QUEUE)
    .values(
        last_change=QUEUE.c.last_change + bindparam("changes"),
        last_job=QUEUE.c.last_job + bindparam("jobs"),
        last_event=QUEUE.c.last_event + bindparam("events"),
    )
    .returning(QUEUE.c.last_change, QUEUE.c.last_job, QUEUE.c.last_event)
)
_TAKE_AS_LEADER = _TAKE.where(QUEUE.c.epoch == bindparam("led"), QUEUE.c.holder.is_not(None))
_LEADER = select(QUEUE.c.holder, QUEUE.c.epoch, QUEUE.c.url, QUEUE.c.expires_s)
_LEAD = update(QUEUE)


def take(
    connection: Connection, *, changes: int = 0, jobs: int = 0, events: int = 0, epoch: int | None = None
) -> Numbers:
    """Take numbers, first in every writing transaction. No other transaction writes until this one has ended.

    With an epoch, as the leader. Raises NotLeader.
    """
    given = {"changes": changes, "jobs": jobs, "events": events}
    statement, led = (_TAKE, {}) if epoch is None else (_TAKE_AS_LEADER, {"led": epoch})
    row = connection.execute(statement, given | led).one_or_none()
    if row is None:
        leads = leader(connection)
        who = f"{leads.holder} leads, with epoch {leads.epoch}" if leads else "nobody has ever led"
        raise NotLeader(f"the leadership with epoch {epoch} is over: {who}")
    return Numbers(row[0] - changes, row[1] - jobs, row[2] - events)


def last_change(connection: Connection) -> int:
    return int(connection.execute(select(QUEUE.c.last_change)).scalar_one())


def last_event(connection: Connection) -> int:
    return int(connection.execute(select(QUEUE.c.last_event)).scalar_one())


def leader(connection: Connection) -> Leadership | None:
    holder, epoch, url, expires_s = connection.execute(_LEADER).one()
    return None if holder is None else Leadership(holder, epoch, url, expires_s)


def lead(connection: Connection, holder: str, url: str, now_s: float, for_s: float) -> Leadership | None:
    take(connection)
    before = leader(connection)
    if before is not None and before.holder != holder and before.expires_s > now_s:
        return None
    same = before is not None and before.holder == holder
    epoch = (before.epoch if before else 0) + (not same)
    leads = Leadership(holder, epoch, url, now_s + for_s)
    connection.execute(_LEAD, {"holder": holder, "epoch": epoch, "url": url, "expires_s": leads.expires_s})
    return leads


def resign(connection: Connection, holder: str) -> None:
    take(connection)
    before = leader(connection)
    if before is not None and before.holder == holder:
        connection.execute(_LEAD, {"expires_s": 0.0})
