"""Parents: the jobs that a submission refers to, by id or by its beginning, and those that keep a job from a retry."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from orchestrator.queue.errors import ParentFailed, QueueError, UnknownJob
from orchestrator.queue.records import Job, ray_submission_of
from orchestrator.queue.states import State
from orchestrator.queue.store import Filter, Store
from orchestrator.queue.wording import HAS_ENDED
from orchestrator.service.context.caller import Caller, job_for

_SHOWN = 3
_MOST_LOOKED_AT: Final = 50
_NAMED: Final = 10


class Parents:
    """Looks up parents for one submission, and caches the results.

    Jobs cannot form a circle: a job refers to ids, and an id is drawn when its job is stored. So a parent is always
    older than its child.
    """

    def __init__(self, store: Store, caller: Caller, own_names: frozenset[str]) -> None:
        """`own_names`: names of the specs in this submission, which have no ids yet."""
        self._store, self._caller, self._own_names = store, caller, own_names
        self._look = functools.cache(self._look_up)

    def find(self, reference: str, field: str, own_name: str) -> Job:
        """Return a job that the caller may see, and that has not failed.

        Raises:
            UnknownJob: there is no such job.
            QueueError: the reference matches several jobs, or is the spec's own name.
            ParentFailed: the job has failed or was cancelled.
        """
        if reference == own_name:
            raise QueueError.at(
                field,
                f"{reference} is the name of this very job, which cannot come after itself. Jobs are named by their "
                f"ids, as {own_name}-4f7k2m",
            )
        found = self._look(reference)
        if isinstance(found, QueueError):
            raise type(found).at(field, str(found))
        if found.state in (State.FAILED, State.CANCELLED):
            what = f"{found.job_id} {HAS_ENDED[found.state]}: retry it first (fleetune retry {found.job_id})"
            raise ParentFailed.at(field, what)
        return found

    def _look_up(self, reference: str) -> Job | QueueError:
        exact = self._exact(reference)
        if exact is not None:
            return exact
        alike = self._beginning_with(reference) if reference else []
        if len(alike) == 1:
            return alike[0]
        if alike:
            some = ", ".join(job.job_id for job in alike[:_SHOWN]) + (", ..." if len(alike) > _SHOWN else "")
            return QueueError(f"{reference!r} may mean several jobs ({some}): give more of the id")
        if reference in self._own_names:
            return UnknownJob(
                f"{reference!r} is another job of this submission, and has no id yet: submit it first, and give its id"
            )
        return UnknownJob(f"there is no job {reference!r}: `fleetune queue` lists the ids")

    def _exact(self, reference: str) -> Job | None:
        try:
            return job_for(self._caller, self._store, reference)
        except UnknownJob:
            return None

    def _beginning_with(self, reference: str) -> list[Job]:
        which = Filter(tenant=self._caller.tenant, name=reference)
        return [job for job in self._store.jobs(which, limit=_SHOWN + 1) if self._caller.may_see(job.tenant)]


class GuestGone(QueueError):
    """The job ran in the environment of a Ray-submitted program that has ended."""

    status = 409


def check_retry(store: Store, job: Job, caller: Caller) -> None:
    """Check that a job can be queued again.

    Raises:
        GuestGone: the job was submitted with `ray job submit`.
        ParentFailed: a parent has failed or was cancelled. The message names all jobs to retry first.
    """
    if ray_submission_of(job) is not None:
        raise GuestGone(
            f"{job.job_id} came by `ray job submit`, and ran in the environment of that program, which has ended: "
            "submit it again that way"
        )
    if _failed(job) and (before := _failed_before(store, job, caller)):
        first = next(one for one in before if one.job_id in job.after)
        ids = " ".join(one.job_id for one in before) if len(before) <= _NAMED else "..."
        raise ParentFailed(
            f"job {job.job_id} was not queued again, since it would fail at once: {first.job_id}, which it comes "
            f"after, {HAS_ENDED[first.state]}. Retry that one, too: fleetune retry {ids} {job.job_id}"
        )


def _failed(job: Job) -> bool:
    return job.state in (State.FAILED, State.CANCELLED)


def _failed_before(store: Store, job: Job, caller: Caller) -> Sequence[Job]:
    """Return failed parents, their failed parents, and so on, oldest first. Only jobs that the caller may see."""
    found: dict[str, Job] = {}
    asked, to_ask = set[str](), list(job.after)
    while to_ask and len(asked) < _MOST_LOOKED_AT:
        job_id = to_ask.pop(0)
        if job_id in asked:
            continue
        asked.add(job_id)
        try:
            parent = store.job(job_id)
        except UnknownJob:
            continue
        if _failed(parent) and caller.may_see(parent.tenant):
            found[job_id] = parent
            to_ask += parent.after
    return sorted(found.values(), key=lambda one: one.number)
