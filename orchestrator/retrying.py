"""Queueing a job again: what would fail again at once, for a job that it comes after, is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.api import JobView
from orchestrator.connection import Connection
from orchestrator.jobref import job_path
from orchestrator.queue.errors import ParentFailed, UnknownJob
from orchestrator.queue.states import State
from orchestrator.queue.words import HAS_ENDED

MOST_LOOKED_AT: Final = 50
NAMED: Final = 10


def retry(connection: Connection, job: JobView) -> JobView:
    """As it is then.

    Raises:
        ParentFailed: a job that it comes after has failed or was cancelled, with all that are to be retried before.
        JobEnded: it has succeeded.
        NotEnded: it has not ended.
    """
    if _failed(job) and (before := _failed_before(connection, job)):
        first = next(one for one in before if one.job_id in job.after)
        ids = " ".join(one.job_id for one in before) if len(before) <= NAMED else "..."
        raise ParentFailed(
            f"job {job.job_id} was not queued again, since it would fail at once: {first.job_id}, which it comes "
            f"after, {HAS_ENDED[first.state]}. Retry that one, too: fleetune retry {ids} {job.job_id}"
        )
    return connection.post(f"{job_path(job.job_id)}/retry", JobView)


def _failed(job: JobView) -> bool:
    return job.state in (State.FAILED, State.CANCELLED)


def _failed_before(connection: Connection, job: JobView) -> Sequence[JobView]:
    """The jobs before it that have failed, those before these, and so on; the oldest first."""
    found: dict[str, JobView] = {}
    asked, to_ask = set[str](), list(job.after)
    while to_ask and len(asked) < MOST_LOOKED_AT:
        job_id = to_ask.pop(0)
        if job_id in asked:
            continue
        asked.add(job_id)
        try:
            parent = connection.get(job_path(job_id), JobView)
        except UnknownJob:  # or somebody else's: the server knows
            continue
        if _failed(parent):
            found[job_id] = parent
            to_ask += parent.after
    return sorted(found.values(), key=lambda one: one.number)
