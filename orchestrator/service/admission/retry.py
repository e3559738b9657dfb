"""Retries: refuse those that would fail again at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.queue.clients import ray_submission_of
from orchestrator.queue.errors import ParentFailed, QueueError, UnknownJob
from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.queue.store import Store
from orchestrator.queue.wording import HAS_ENDED
from orchestrator.service.context.caller import Caller

_MOST_LOOKED_AT: Final = 50
_NAMED: Final = 10


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
