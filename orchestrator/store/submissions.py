"""Submissions: new ids, idempotency keys, and checks of what new jobs refer to."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, bindparam, exc, insert, select

from orchestrator.queue.errors import KeyReused, StoreBroken, UnknownTenant
from orchestrator.queue.names import new_job_id
from orchestrator.queue.records import Job, NewJob, QueueEvent
from orchestrator.queue.states import State
from orchestrator.queue.store import SubmissionKey
from orchestrator.store import events as history
from orchestrator.store import job_changes as steps
from orchestrator.store import jobs as jobtable
from orchestrator.store.counters import take
from orchestrator.store.database.database import Database
from orchestrator.store.database.rows import JOB_COLUMNS, add_rows, plain, values_of
from orchestrator.store.database.schema import JOBS, KEYS, SPECS, TENANTS
from orchestrator.store.database.unreadable import jobs_of

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # without i, l and o, which resemble 1 and 0, and without u
_PAIRS = [one + other for one in ALPHABET for other in ALPHABET]
_TRIES = 20

Draw = Callable[[], str]
Jobs = tuple[Job, ...]

_ADD_KEY = insert(KEYS)
_KEY = select(KEYS.c.digest, KEYS.c.first_job, KEYS.c.jobs).where(
    KEYS.c.scope == bindparam("scope"), KEYS.c.key == bindparam("key")
)
_NUMBERED = (
    select(*JOB_COLUMNS).where(JOBS.c.number.between(bindparam("first"), bindparam("last"))).order_by(JOBS.c.number)
)
_TENANTS = select(TENANTS.c.name)


def draw() -> str:
    """Draw the random end of an id, one of 2**30."""
    number = secrets.randbits(30)
    return f"{_PAIRS[number & 1023]}{_PAIRS[number >> 10 & 1023]}{_PAIRS[number >> 20]}"


def submit(database: Database, drawn: Draw, jobs: Sequence[NewJob], now_s: float, key: SubmissionKey | None) -> Jobs:
    """Add jobs, or return those that were added with the key before.

    For a single job, the database checks that the tenant exists and that the id is new: four statements are enough.
    """
    if not jobs:
        return ()
    for _ in range(_TRIES):
        try:
            with database.write() as connection:
                there = None if key is None else known(connection, key)
                return _add(connection, drawn, jobs, now_s, key) if there is None else there
        except exc.IntegrityError as error:
            cause = error
            with database.read() as connection:
                _check_tenants(connection, jobs)
    raise StoreBroken(f"no new ids were found in {_TRIES} tries: {cause.orig}") from cause


def _add(connection: Connection, drawn: Draw, new: Sequence[NewJob], now_s: float, key: SubmissionKey | None) -> Jobs:
    """Add jobs. Raises QueueError, or IntegrityError if a tenant is missing, or an id or the key is taken."""
    numbers = take(connection, changes=len(new), jobs=len(new), events=len(new))
    _check_parents(connection, new)
    _check_queued(connection, new)
    jobs = tuple(
        steps.submitted(one, job_id, numbers.job + place, now_s, numbers.change + place)
        for place, (one, job_id) in enumerate(zip(new, _new_ids(connection, new, drawn), strict=True), 1)
    )
    add_rows(connection, JOBS, [values_of(job) for job in jobs])
    specs = [{"number": job.number, "spec": one.spec} for job, one in zip(jobs, new, strict=True)]
    add_rows(connection, SPECS, specs)
    history.add(connection, [_event(job) for job in jobs], numbers.event)
    if key is not None:
        counted = {"first_job": jobs[0].number, "jobs": len(jobs), "created_s": now_s}
        connection.execute(_ADD_KEY, asdict(key) | counted)
    return jobs


def _new_ids(connection: Connection, new: Sequence[NewJob], drawn: Draw) -> list[str]:
    ids = [new_job_id(one.name, drawn()) for one in new]
    if len(new) == 1:
        return ids
    _check_tenants(connection, new)
    for _ in range(_TRIES):
        taken = set(jobtable.get_all(connection, ids))
        if not taken and len(set(ids)) == len(ids):
            return ids
        for place, job_id in enumerate(ids):
            ids[place] = new_job_id(new[place].name, drawn()) if job_id in taken else job_id
            taken.add(job_id)
    raise StoreBroken(f"no new ids were found in {_TRIES} tries")


def _event(job: Job) -> QueueEvent:
    said = plain(f"submitted by {job.submitted_by}")
    data = {"reason": job.reason, "by": plain(job.submitted_by)}
    return QueueEvent(job.submitted_s, State.QUEUED, said, job.job_id, data)


def known(connection: Connection, key: SubmissionKey) -> Jobs | None:
    row = connection.execute(_KEY, {"scope": key.scope, "key": key.key}).one_or_none()
    if row is None:
        return None
    if row.digest != key.digest:
        raise KeyReused(f"the key {key.key!r} was used for another submission: give each submission a key of its own")
    given = {"first": row.first_job, "last": row.first_job + row.jobs - 1}
    return tuple(jobs_of(connection, connection.execute(_NUMBERED, given)))


def _check_parents(connection: Connection, new: Sequence[NewJob]) -> None:
    parents = [parent for one in new for parent in one.after]
    known = jobtable.get_all(connection, parents)
    if missing := [parent for parent in parents if parent not in known]:
        raise jobtable.unknown(connection, missing[0], "It is named in `after`")


def _check_queued(connection: Connection, new: Sequence[NewJob]) -> None:
    """Raise TooManyQueued if the limit of a tenant is exceeded."""
    limits = {job.tenant: job.most_queued for job in new if job.most_queued is not None}
    for tenant, most in limits.items():
        jobtable.check_room(connection, tenant, most, sum(job.tenant == tenant for job in new))


def _check_tenants(connection: Connection, new: Sequence[NewJob]) -> None:
    known = {str(name) for name in connection.execute(_TENANTS).scalars()}
    if missing := [one.tenant for one in new if one.tenant not in known]:
        raise UnknownTenant.among(missing[0], known)
