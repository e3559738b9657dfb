"""Transitions of jobs, with their leases and events, in a few statements for any number of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from cluster.capacity.occupancy import workers_in
from cluster.text import many
from orchestrator.queue.errors import NotReleasable
from orchestrator.queue.records import Job, Lease, NodePlaces, QueueEvent, Transition
from orchestrator.queue.retry import state_after_stop
from orchestrator.queue.states import HOLDS_A_LEASE, UNFINISHED, DesiredState, Reason, State
from orchestrator.store import events as history
from orchestrator.store import job_changes as steps
from orchestrator.store import jobs as jobtable
from orchestrator.store.counters import take
from orchestrator.store.database.rows import CHANGED, JOB_COLUMNS, LEASE_COLUMNS, Values, dumped, lease_of
from orchestrator.store.database.schema import JOBS, LEASES
from orchestrator.store.database.unreadable import jobs_of, records_of

_GRANT = insert(LEASES)
_SHRINK = update(LEASES).where(
    LEASES.c.job == bindparam("of_job"), LEASES.c.attempt == bindparam("of_attempt"), LEASES.c.released_s.is_(None)
)
_RELEASE = _SHRINK.values(released_s=bindparam("at_s"))
_LATER = select(*JOB_COLUMNS).where(
    JOBS.c.state.in_([state.value for state in UNFINISHED]),
    or_(JOBS.c.started_s > bindparam("now_s"), JOBS.c.waiting_since_s > bindparam("now_s")),
)
_LEASES = select(*LEASE_COLUMNS).join(JOBS, JOBS.c.number == LEASES.c.job).order_by(LEASES.c.number)
_HELD = _LEASES.where(LEASES.c.released_s.is_(None))
_SINCE = _LEASES.where(LEASES.c.released_s.is_(None) | (LEASES.c.released_s >= bindparam("since_s")))


def apply_transitions(connection: Connection, epoch: int, transitions: Sequence[Transition], now_s: float) -> list[Job]:
    steps.check(transitions)
    numbers = take(connection, epoch=epoch, changes=len(transitions), events=len(transitions))
    now = jobtable.get_all(connection, (one.job_id for one in transitions))
    parents_ended_s = jobtable.parents_ended_s(connection, now.values())
    changed: dict[str, Job] = {}
    granted: list[Values] = []
    released: list[Values] = []
    happened: list[QueueEvent] = []
    for place, one in enumerate(transitions, 1):
        before = now.get(one.job_id)
        if before is None:
            continue
        after = steps.after_transition(before, one, now_s, numbers.change + place, parents_ended_s.get(one.job_id, 0.0))
        if after is None:
            continue
        if one.to is State.STARTING:
            granted.append(_grant(after, now_s))
        if before.state in HOLDS_A_LEASE and after.state not in HOLDS_A_LEASE:
            released.append(_release(before, now_s))
        happened.append(_event(after, now_s))
        now[one.job_id] = changed[one.job_id] = after
    jobtable.write(connection, changed.values(), CHANGED)
    for statement, rows in ((_GRANT, granted), (_RELEASE, released)):
        if rows:
            connection.execute(statement, rows)
    history.add(connection, happened, numbers.event)
    return list(changed.values())


def release(connection: Connection, job_id: str, attempt: int, now_s: float, by: str) -> Job:
    numbers = take(connection, changes=1, events=2)
    job = jobtable.get(connection, job_id)
    if job.state is not State.STOPPING or job.attempt != attempt:
        raise NotReleasable(
            f"job {job_id} is {job.state}, in attempt {job.attempt}: only one that is stopping is released"
        )
    state, text = state_after_stop(job) if job.wanted is not DesiredState.CANCEL else (State.CANCELLED, "cancelled")
    reason = Reason.CANCELLED if job.wanted is DesiredState.CANCEL else job.reason
    after = steps.after_transition(
        job, Transition(job_id, job.state, attempt, state, reason, text), now_s, numbers.change + 1
    )
    assert after is not None
    jobtable.write(connection, [after], CHANGED)
    connection.execute(_RELEASE, [_release(job, now_s)])
    said = f"{by} has released the nodes of attempt {attempt}, whose driver was not seen to end"
    event = QueueEvent(now_s, "released", said, job_id, {"by": by, "attempt": attempt, "placement": job.placement})
    history.add(connection, [event, _event(after, now_s)], numbers.event)
    return after


def give_back(connection: Connection, job_id: str, attempt: int, kept: NodePlaces, now_s: float) -> Job:
    numbers = take(connection, changes=2, events=1)  # one for the job, and one for the lease of what is given back
    job = jobtable.get(connection, job_id)
    found = steps.given_back(job, kept, numbers.change + 2) if job.attempt == attempt else None
    if found is None:
        return job
    after, back = found
    jobtable.write(connection, [after], CHANGED)
    key = {"of_job": job.number, "of_attempt": attempt}
    connection.execute(_SHRINK.values(placement=dumped(after.placement), workers=workers_in(after.placement)), key)
    granted_s = now_s if job.started_s is None else job.started_s
    lease = _grant(replace(after, placement=back, changed=numbers.change + 1), granted_s)
    connection.execute(_GRANT, [lease | {"released_s": max(now_s, granted_s)}])
    said = f"goes on with {many(after.gang.num_workers, 'worker')} of {job.gang.num_workers}, and gives the others back"
    data = {"attempt": attempt, "placement": after.placement, "given_back": back}
    history.add(connection, [QueueEvent(now_s, "given-back", said, job_id, data)], numbers.event)
    return after


def pull_back(connection: Connection, epoch: int, now_s: float) -> None:
    take(connection, epoch=epoch)  # locks the row: no other transaction writes from here on
    jobs = jobs_of(connection, connection.execute(_LATER, {"now_s": now_s}))
    numbers = take(connection, epoch=epoch, changes=len(jobs))
    for place, job in enumerate(jobs, 1):
        began_s = None if job.started_s is None else min(job.started_s, now_s)
        since_s, changed = min(job.waiting_since_s, now_s), numbers.change + place
        jobtable.write(connection, [replace(job, started_s=began_s, waiting_since_s=since_s, changed=changed)], CHANGED)


def _grant(job: Job, now_s: float) -> Values:
    return {
        "number": job.changed,
        "job": job.number,
        "attempt": job.attempt,
        "placement": dumped(job.placement),
        "granted_s": now_s,
        "released_s": None,
        "workers": workers_in(job.placement),
    }


def _release(job: Job, now_s: float) -> Values:
    started_s = now_s if job.started_s is None else job.started_s
    return {"of_job": job.number, "of_attempt": job.attempt, "at_s": max(now_s, started_s)}


def _event(job: Job, now_s: float) -> QueueEvent:
    data = {"reason": job.reason, "attempt": job.attempt}
    if job.placement and job.state is State.STARTING:
        data["placement"] = job.placement
    return QueueEvent(now_s, job.state, job.message or job.reason.replace("-", " "), job.job_id, data)


def leases(connection: Connection, *, held: bool = False, since_s: float = 0.0) -> list[Lease]:
    rows = connection.execute(_HELD) if held else connection.execute(_SINCE, {"since_s": since_s})
    return records_of(connection, "lease", rows, lease_of)
