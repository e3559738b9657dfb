"""Deletion of jobs that ended long ago, with all their rows, and of old events of the cluster.

Each call is a short transaction. Usage of tenants is kept: deleted leases are added to `USAGE` by month.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, or_, select, text, update

from orchestrator.queue.months import totals_of
from orchestrator.queue.records import Lease
from orchestrator.queue.states import ENDED
from orchestrator.store.counters import take
from orchestrator.store.database.rows import LEASE_COLUMNS, lease_of
from orchestrator.store.database.schema import EVENTS, JOBS, KEYS, LEASES, NEEDS_OTHERS, SPECS, USAGE
from orchestrator.store.database.unreadable import records_of

_NEEDED = select(JOBS.c.after).where(text(NEEDS_OTHERS))
_STATE = func.coalesce(JOBS.c.state, "")  # an expression, so that no query planner reads all ended jobs by state
_OLD = and_(
    JOBS.c.ended_s < bindparam("before_s"),
    _STATE.in_(sorted(state.value for state in ENDED)),
    or_(JOBS.c.on_end == "", JOBS.c.followed == JOBS.c.changed),
)
_PRUNABLE = select(JOBS.c.job_id, JOBS.c.attempt).where(_OLD).order_by(JOBS.c.ended_s).limit(bindparam("limit"))
_STILL = select(JOBS.c.number, JOBS.c.job_id).where(_OLD, JOBS.c.job_id.in_(bindparam("ids", expanding=True)))
_LEASES = (
    select(*LEASE_COLUMNS)
    .join(JOBS, JOBS.c.number == LEASES.c.job)
    .where(LEASES.c.job.in_(bindparam("numbers", expanding=True)))
)
_EVENTS = (
    select(EVENTS.c.number, EVENTS.c.at_s)
    .where(EVENTS.c.job_id.is_(None))
    .order_by(EVENTS.c.number)
    .limit(bindparam("limit"))
)
_MOST_EVENTS = 500  # most events of the cluster to delete in one call


def prunable(connection: Connection, before_s: float, limit: int) -> list[tuple[str, int]]:
    needed = _needed(connection)
    rows = connection.execute(_PRUNABLE, {"before_s": before_s, "limit": limit + len(needed)})
    return [(job_id, attempt) for job_id, attempt in rows if job_id not in needed][:limit]


def prune(connection: Connection, epoch: int, job_ids: Sequence[str], before_s: float) -> int:
    take(connection, epoch=epoch)
    needed = _needed(connection)  # again, because a job that waits for one of them may have been submitted since
    wanted = [job_id for job_id in job_ids if job_id not in needed]
    found = connection.execute(_STILL, {"before_s": before_s, "ids": wanted}).all() if wanted else []
    numbers, ids = [row.number for row in found], [row.job_id for row in found]
    if numbers:
        leases = records_of(connection, "lease", connection.execute(_LEASES, {"numbers": numbers}), lease_of)
        _add_up(connection, leases)
        for column in (LEASES.c.job, SPECS.c.number, KEYS.c.first_job):
            connection.execute(delete(column.table).where(column.in_(numbers)))
        connection.execute(delete(EVENTS).where(EVENTS.c.job_id.in_(ids)))
        connection.execute(delete(JOBS).where(JOBS.c.number.in_(numbers)))
    old = [number for number, at_s in connection.execute(_EVENTS, {"limit": _MOST_EVENTS}) if at_s < before_s]
    if old:
        connection.execute(delete(EVENTS).where(EVENTS.c.number.in_(old)))
    return len(numbers) + len(old)


def _needed(connection: Connection) -> set[str]:
    """Return the ids of jobs that others wait for, or would wait for after a retry."""
    return set(chain.from_iterable(map(_ids, connection.execute(_NEEDED).scalars())))


def _ids(after: str) -> Iterable[str]:
    try:
        return [one for one in json.loads(after) if isinstance(one, str)]
    except ValueError:  # the row cannot be read: keep everything that it may name
        return after.replace('"', " ").replace(",", " ").split()


def _add_up(connection: Connection, leases: Iterable[Lease]) -> None:
    for total in totals_of(leases):
        key = (USAGE.c.month == total.month, USAGE.c.tenant == total.tenant)
        more: dict[str, Any] = {
            "gpu_s": USAGE.c.gpu_s + total.gpu_s,
            "cpu_s": USAGE.c.cpu_s + total.cpu_s,
            "jobs": USAGE.c.jobs + total.jobs,
        }
        if not connection.execute(update(USAGE).where(*key).values(more)).rowcount:
            connection.execute(insert(USAGE).values(total._asdict()))
