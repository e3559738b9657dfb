"""Submissions: new ids, idempotency keys, and checks of what new jobs refer to."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, exc, insert, select

from orchestrator.queue.errors import KeyReused, StoreBroken, UnknownTenant
from orchestrator.queue.records import Job, NewJob, QueueEvent
from orchestrator.queue.states import State
from orchestrator.queue.store import Filter, SubmissionKey
from orchestrator.queue.tenants import check_queued
from orchestrator.store import bulk_insert as bulk
from orchestrator.store import events as history
from orchestrator.store import job_changes as steps
from orchestrator.store import jobs as jobtable
from orchestrator.store import listing as pages
from orchestrator.store.counters import Numbers, take
from orchestrator.store.database.database import Database
from orchestrator.store.database.rows import JOB_COLUMNS, Values, plain, values_of
from orchestrator.store.database.schema import JOBS, KEYS, SPECS, TENANTS
from orchestrator.store.database.unreadable import jobs_of
from orchestrator.store.group_commit import Call, Gathering

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


class _SameAgain(Exception):
    """The key is known, so that nothing is written."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs


def draw() -> str:
    """Draw the random end of an id, one of 2**30."""
    number = secrets.randbits(30)
    return f"{_PAIRS[number & 1023]}{_PAIRS[number >> 10 & 1023]}{_PAIRS[number >> 20]}"


@dataclass(frozen=True)
class Submission:
    jobs: Sequence[NewJob]
    now_s: float
    key: SubmissionKey | None


class Submissions:
    """Stores submissions. Those of concurrent threads are written in one transaction."""

    def __init__(self, database: Database, drawn: Draw = draw) -> None:
        self._database, self._drawn = database, drawn
        self._gathering = Gathering[Submission, Jobs](self._carry_out)

    def submit(self, submission: Submission) -> Jobs:
        return self._gathering.ask(submission) if submission.jobs else ()

    def known(self, key: SubmissionKey) -> Jobs | None:
        """Return the jobs that were submitted with a key; None: there are none. Raises KeyReused."""
        with self._database.read() as connection:
            return _of_key(connection, key)

    def _carry_out(self, calls: list[Call[Submission, Jobs]]) -> None:
        if len(calls) > 1 and self._together(calls):
            return
        for call in calls:
            try:
                call.answer = self._alone(call.question)
            except Exception as error:  # for its caller only; the other calls go on
                call.error = error

    def _together(self, calls: list[Call[Submission, Jobs]]) -> bool:
        """Write several submissions in one transaction.

        Returns False, with nothing written, if one of them is refused or was made before. Raises StoreBroken.
        """
        try:
            with self._database.write() as connection:
                answers = _add(connection, [call.question for call in calls], self._drawn)
        except StoreBroken:
            raise
        except Exception:
            return False
        for call, answer in zip(calls, answers, strict=True):
            call.answer = answer
        return True

    def _alone(self, submission: Submission) -> Jobs:
        """Write one submission.

        For a single job, constraints of the database check tenant and id: four statements do.
        """
        for _ in range(_TRIES):
            try:
                with self._database.write() as connection:
                    (jobs,) = _add(connection, [submission], self._drawn)
                    return jobs
            except _SameAgain as known:
                return known.jobs
            except exc.IntegrityError as error:
                cause = error
                with self._database.read() as connection:
                    _check_tenants(connection, submission.jobs)
        raise StoreBroken(f"no new ids were found in {_TRIES} tries: {cause.orig}") from cause


def _add(connection: Connection, submissions: Sequence[Submission], drawn: Draw) -> list[Jobs]:
    """Add jobs. Raises _SameAgain, QueueError, or IntegrityError if a tenant is missing or an id or key is taken."""
    new = [job for submission in submissions for job in submission.jobs]
    numbers = take(connection, changes=len(new), jobs=len(new), events=len(new))
    for submission in submissions:
        _check_key(connection, submission)
    _check_parents(connection, new)
    _check_queued(connection, new)
    names = iter(_new_ids(connection, new, drawn))
    places = itertools.count(1)
    made = [
        tuple(_made(job, next(names), next(places), numbers, submission.now_s) for job in submission.jobs)
        for submission in submissions
    ]
    jobs = [job for some in made for job in some]
    bulk.add(connection, JOBS, [values_of(job) for job in jobs])
    specs = [{"number": job.number, "spec": one.spec} for job, one in zip(jobs, new, strict=True)]
    bulk.add(connection, SPECS, specs)
    history.add(connection, [_event(job) for job in jobs], numbers.event)
    if keys := [_key_values(one, some) for one, some in zip(submissions, made, strict=True) if one.key]:
        connection.execute(_ADD_KEY, keys)
    return made


def _new_ids(connection: Connection, new: Sequence[NewJob], drawn: Draw) -> list[str]:
    ids = [f"{one.name}-{drawn()}" for one in new]
    if len(new) == 1:
        return ids
    _check_tenants(connection, new)
    for _ in range(_TRIES):
        taken = set(jobtable.get_all(connection, ids))
        if not taken and len(set(ids)) == len(ids):
            return ids
        for place, job_id in enumerate(ids):
            ids[place] = f"{new[place].name}-{drawn()}" if job_id in taken else job_id
            taken.add(job_id)
    raise StoreBroken(f"no new ids were found in {_TRIES} tries")


def _made(new: NewJob, job_id: str, place: int, numbers: Numbers, now_s: float) -> Job:
    return steps.submitted(new, job_id, numbers.job + place, now_s, numbers.change + place)


def _event(job: Job) -> QueueEvent:
    said = plain(f"submitted by {job.submitted_by}")
    data = {"reason": job.reason, "by": plain(job.submitted_by)}
    return QueueEvent(job.submitted_s, State.QUEUED, said, job.job_id, data)


def _check_key(connection: Connection, submission: Submission) -> None:
    """Raise _SameAgain or KeyReused if the submission's key is known."""
    jobs = _of_key(connection, submission.key) if submission.key is not None else None
    if jobs is not None:
        raise _SameAgain(jobs)


def _of_key(connection: Connection, key: SubmissionKey) -> Jobs | None:
    row = connection.execute(_KEY, {"scope": key.scope, "key": key.key}).one_or_none()
    if row is None:
        return None
    if row.digest != key.digest:
        raise KeyReused(f"the key {key.key!r} was used for another submission: give each submission a key of its own")
    given = {"first": row.first_job, "last": row.first_job + row.jobs - 1}
    return tuple(jobs_of(connection, connection.execute(_NUMBERED, given)))


def _key_values(submission: Submission, made: Jobs) -> Values:
    key = submission.key
    assert key is not None
    given = {"scope": key.scope, "key": key.key, "digest": key.digest}
    return {**given, "first_job": made[0].number, "jobs": len(made), "created_s": submission.now_s}


def _check_parents(connection: Connection, new: Sequence[NewJob]) -> None:
    parents = [parent for one in new for parent in one.after]
    if not parents:
        return
    known = jobtable.get_all(connection, parents)
    if missing := [parent for parent in parents if parent not in known]:
        raise jobtable.unknown(connection, missing[0], "It is named in `after`")


def _check_queued(connection: Connection, new: Sequence[NewJob]) -> None:
    """Raise TooManyQueued if a tenant's limit is exceeded. Writers take turns, so two submissions cannot both pass."""
    limits = {job.tenant: job.most_queued for job in new if job.most_queued is not None}
    for tenant, most in limits.items():
        more = sum(job.tenant == tenant for job in new)
        check_queued(tenant, most, pages.count(connection, Filter(tenant, (State.QUEUED,))).get(State.QUEUED, 0), more)


def _check_tenants(connection: Connection, new: Sequence[NewJob]) -> None:
    known = {str(name) for name in connection.execute(_TENANTS).scalars()}
    if missing := [one.tenant for one in new if one.tenant not in known]:
        raise UnknownTenant.among(missing[0], known)
