"""Single jobs: look up, request changes, retry, record reports."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, literal_column, select, text, update

from orchestrator.queue.errors import JobEnded, NotEnded, UnknownJob, UnreadableJob
from orchestrator.queue.names import submission_of
from orchestrator.queue.records import Job, Measured, QueueEvent
from orchestrator.queue.states import ENDED, DesiredState, Reason, State
from orchestrator.queue.store import Change, Filter
from orchestrator.queue.tenants import check_queued
from orchestrator.queue.wording import HAS_ENDED
from orchestrator.store import events as history
from orchestrator.store import job_changes as steps
from orchestrator.store import listing as pages
from orchestrator.store import registry
from orchestrator.store.counters import take
from orchestrator.store.database.rows import ASKED, CHANGED, HEARD, JOB_COLUMNS, MEASURED, Values, values_of
from orchestrator.store.database.schema import ENDED_UNFOLLOWED, JOBS, OF_A_CLIENT, SPECS
from orchestrator.store.database.unreadable import jobs_of, unread_of

_BATCH = 1000  # parameters in one statement; both databases allow more than 30,000
_TAIL = 8  # number of last characters of an id that may be wrong for a suggestion
_BY_ID = select(*JOB_COLUMNS).where(JOBS.c.job_id == bindparam("job_id"))
_BY_IDS = select(*JOB_COLUMNS).where(JOBS.c.job_id.in_(bindparam("job_ids", expanding=True)))
_SPEC = select(SPECS.c.spec).join(JOBS, JOBS.c.number == SPECS.c.number).where(JOBS.c.job_id == bindparam("job_id"))
_NUMBER = JOBS.c.number + literal_column("0")  # an expression, so that no query planner scans all jobs in this order
_UNFOLLOWED = (
    select(*JOB_COLUMNS)
    .where(text(ENDED_UNFOLLOWED), JOBS.c.followed >= 0)  # the range makes SQLite use the index
    .order_by(_NUMBER)
    .limit(bindparam("limit"))
)
_FOLLOWED = update(JOBS).where(JOBS.c.number == bindparam("of")).values(followed=bindparam("end"))
_OF_CLIENTS = select(*JOB_COLUMNS).where(text(OF_A_CLIENT)).order_by(_NUMBER)
_HEARD_OF = select(JOBS.c.job_id, JOBS.c.attempt, JOBS.c.heard_s).where(
    JOBS.c.state.in_([State.STARTING.value, State.RUNNING.value])
)
_WRITE = update(JOBS).where(JOBS.c.number == bindparam("of"))


def find(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(_BY_ID, {"job_id": job_id}).one_or_none()
    return None if row is None else _read(connection, row)


def _read(connection: Connection, row: Sequence[Any]) -> Job:
    """Convert one row. Raises UnreadableJob."""
    for job in jobs_of(connection, [row]):
        return job
    problem = next((one.problem for one in unread_of(connection).rows() if one.name == row[1]), "its row is damaged")
    raise UnreadableJob(
        f"job {row[1]} cannot be read: {problem}. Other jobs go on. Ask an administrator to upgrade the server to the "
        "release that has written it",
        row[4],
    )


def get(connection: Connection, job_id: str) -> Job:
    job = find(connection, job_id)
    if job is None:
        raise unknown(connection, job_id)
    return job


def get_all(connection: Connection, job_ids: Iterable[str]) -> dict[str, Job]:
    wanted = list(dict.fromkeys(job_ids))
    batches = (wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH))
    rows = (row for batch in batches for row in connection.execute(_BY_IDS, {"job_ids": batch}))
    return {job.job_id: job for job in jobs_of(connection, rows)}


def spec(connection: Connection, job_id: str) -> str:
    found = connection.execute(_SPEC, {"job_id": job_id}).scalar_one_or_none()
    if found is None:
        raise unknown(connection, job_id)
    return str(found)


def unknown(connection: Connection, job_id: str, more: str = "") -> UnknownJob:
    """Make an error that names ids that begin with `job_id`, or else ids that are similar.

    `more`: see `UnknownJob.named`.
    """
    for length in range(len(job_id), max(len(job_id) - _TAIL, 0), -1):
        alike = [job.job_id for job in pages.page(connection, Filter(name=job_id[:length]), limit=50)]
        near = alike[:3] if length == len(job_id) else difflib.get_close_matches(job_id, alike, n=3, cutoff=0.7)
        if near:
            return UnknownJob.named(job_id, near, more)
    return UnknownJob.named(job_id, more=more)


_GO_ON = frozenset({DesiredState.RUN, DesiredState.PAUSE})


def ask(connection: Connection, job_id: str, change: Change, now_s: float, by: str) -> Job:
    numbers = take(connection, changes=1, events=1)
    job = get(connection, job_id)
    if job.state in ENDED:
        raise JobEnded(f"job {job_id} {HAS_ENDED[job.state]}: it is too late for that")
    if job.state is State.STOPPING and job.reason is Reason.CANCELLED and change.wanted in _GO_ON:
        raise JobEnded(f"job {job_id} is ending, because it was cancelled: retry it once it has ended")
    job = steps.asked(job, change, now_s, numbers.change + 1, parents_ended_s(connection, [job]).get(job_id, 0.0))
    write(connection, [job], ASKED)
    history.add(connection, [_asked(job_id, change, now_s, by)], numbers.event)
    return job


def _asked(job_id: str, change: Change, now_s: float, by: str) -> QueueEvent:
    data: dict[str, Any] = {"by": by}
    said = []
    if change.wanted is not None:
        data["wanted"] = change.wanted
        said.append(change.wanted.value)
    if change.priority is not None:
        data["priority"] = change.priority
        said.append(f"priority {change.priority}")
    return QueueEvent(now_s, "asked", f"{by} asks: {', '.join(said) or 'nothing'}", job_id, data)


def retry(connection: Connection, job_id: str, now_s: float, by: str) -> Job:
    numbers = take(connection, changes=1, events=1)
    job = get(connection, job_id)
    if job.state not in ENDED:
        raise NotEnded(f"job {job_id} has not ended: it is {job.state}")
    if job.state is State.SUCCEEDED:
        raise JobEnded(f"job {job_id} has succeeded: submit it again to run it again")
    tenant = registry.tenant(connection, job.tenant)
    if tenant is not None:
        check_room(connection, tenant.name, tenant.restrictions.max_queued_jobs, 1)
    job = steps.retried(job, by, now_s, numbers.change + 1)
    write(connection, [job], (*CHANGED, "client"))
    data = {"reason": job.reason, "by": by}
    history.add(connection, [QueueEvent(now_s, job.state, job.message, job_id, data)], numbers.event)
    return job


def check_room(connection: Connection, tenant: str, most: int | None, more: int) -> None:
    """Raise TooManyQueued if a tenant's limit is exceeded. Writers take turns, so two of them cannot both pass."""
    if most is not None:
        queued = pages.count(connection, Filter(tenant, (State.QUEUED,))).get(State.QUEUED, 0)
        check_queued(tenant, most, queued, more)


def measure(connection: Connection, measured: Sequence[Measured], now_s: float) -> None:
    numbers = take(connection, changes=len(measured))
    jobs = get_all(connection, (one.job_id for one in measured))
    heard: dict[str, Job] = {}
    for place, one in enumerate(measured, 1):
        job = steps.measured(jobs[one.job_id], one, now_s, numbers.change + place) if one.job_id in jobs else None
        if job is not None:
            jobs[job.job_id] = heard[job.job_id] = job
    write(connection, [job for job in heard.values() if job.changed > numbers.change], MEASURED)
    write(connection, [job for job in heard.values() if job.changed <= numbers.change], HEARD)


def heard(connection: Connection) -> dict[str, float | None]:
    return {submission_of(job_id, attempt): heard_s for job_id, attempt, heard_s in connection.execute(_HEARD_OF)}


def parents_ended_s(connection: Connection, jobs: Iterable[Job]) -> dict[str, float]:
    """Return when the last parent of each queued job ended, 0 if none has; jobs without parents are left out."""
    waiting = [job for job in jobs if job.state is State.QUEUED and job.after]
    parents = get_all(connection, (parent for job in waiting for parent in job.after))
    ended_s = {parent.job_id: parent.ended_s for parent in parents.values() if parent.ended_s is not None}
    return {job.job_id: max((ended_s.get(parent, 0.0) for parent in job.after), default=0.0) for job in waiting}


def followups_due(connection: Connection, limit: int = 100) -> list[Job]:
    return jobs_of(connection, connection.execute(_UNFOLLOWED, {"limit": limit}))


def followed(connection: Connection, job: Job) -> None:
    take(connection)
    connection.execute(_FOLLOWED, {"of": job.number, "end": job.changed})


def of_clients(connection: Connection) -> list[Job]:
    return jobs_of(connection, connection.execute(_OF_CLIENTS))


def write(connection: Connection, jobs: Iterable[Job], columns: tuple[str, ...]) -> None:
    """Write these columns of the jobs' rows."""
    if rows := [_written(job, columns) for job in jobs]:
        connection.execute(_WRITE, rows)


def _written(job: Job, columns: tuple[str, ...]) -> Values:
    values = values_of(job)
    return {"of": job.number, **{name: values[name] for name in columns}}
