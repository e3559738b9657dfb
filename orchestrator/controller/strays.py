"""Strays: drivers of attempts that are over. Those that still run are ended, and then forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.backend import Backend, Submission
from orchestrator.queue.records import Job
from orchestrator.queue.states import HOLDS_A_LEASE
from orchestrator.queue.store import Store


def clear_away(store: Store, backend: Backend, strays: Sequence[Submission], end: Callable[[str], None]) -> None:
    """End and forget programs that have no lease any more. `end`: stops one hard.

    The store decides, because a leader that was frozen may have outdated knowledge. A program whose job the store does
    not know or cannot read is left alone: another queue may use the same machines.
    """
    known = store.find({_job_of(one.submission) for one in strays}) if strays else {}
    over = [one for one in strays if _is_over(known.get(_job_of(one.submission)), one.submission)]
    for one in over:
        if not one.ended:
            end(one.submission)
    backend.forget([one.submission for one in over if one.ended])


def _job_of(submission: str) -> str:
    return submission.rpartition("-")[0]


def _is_over(job: Job | None, submission: str) -> bool:
    return job is not None and not (job.state in HOLDS_A_LEASE and job.submission == submission)
