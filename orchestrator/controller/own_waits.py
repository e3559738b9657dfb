"""Measures how long limits of their own tenant have stopped waiting jobs, because that is no wait for nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from orchestrator.controller.ledger import Cluster
from orchestrator.queue.records import Job, Transition
from orchestrator.queue.states import DesiredState, State
from orchestrator.scheduling.quota import Limits
from orchestrator.scheduling.snapshot import Snapshot


class OwnWaits:
    """The measurements of one leadership. What is stopped at first counts as stopped since it was queued."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}  # since when a job has been stopped
        self._before_s: dict[str, float] = {}  # how long it was stopped before that, in its present wait
        self._looked = False

    def look(self, jobs: Sequence[Job], made: Snapshot, cluster: Cluster) -> None:
        """Note which of the jobs, from which the snapshot was made, are stopped now."""
        stopped, now_s = set(_stopped(jobs, made, cluster)), made.now_s
        for job in jobs:
            if job.job_id in stopped:
                self._since_s.setdefault(job.job_id, now_s if self._looked else job.waiting_since_s)
            elif (since_s := self._since_s.pop(job.job_id, None)) is not None:
                self._before_s[job.job_id] = self._before_s.get(job.job_id, 0.0) + now_s - since_s

    def go_on(self, jobs: Iterable[Job]) -> None:
        """Forget jobs that no longer wait. From now on, a stop begins when it is first seen."""
        self._looked = True
        if self._since_s or self._before_s:
            waiting = {job.job_id for job in jobs if job.state is State.QUEUED}
            self._since_s = {name: at_s for name, at_s in self._since_s.items() if name in waiting}
            self._before_s = {name: for_s for name, for_s in self._before_s.items() if name in waiting}

    def without(self, job: Job, now_s: float) -> Job:
        """Return the job with a waiting time that leaves out the time in which it was stopped."""
        stopped_s = self._stopped_s(job.job_id, now_s)
        return replace(job, waited_s=job.waited_s - stopped_s) if stopped_s else job

    def told(self, transition: Transition, now_s: float) -> Transition:
        """Return the transition with the time in which the job was stopped."""
        stopped_s = self._stopped_s(transition.job_id, now_s) if transition.expect is State.QUEUED else 0.0
        return replace(transition, stopped_s=stopped_s) if stopped_s else transition

    def _stopped_s(self, job_id: str, now_s: float) -> float:
        since_s = self._since_s.get(job_id, now_s)
        return self._before_s.get(job_id, 0.0) + max(now_s - since_s, 0.0)


def _stopped(jobs: Sequence[Job], made: Snapshot, cluster: Cluster) -> Iterable[str]:
    """Yield the ids of waiting jobs that a limit or used-up GPU-hours of their tenant stop."""
    rows = made.waiting.nonzero()[0]
    if len(rows) and (limits := Limits(made)):
        yield from (jobs[row].job_id for row in rows[limits.stopped(made.jobs, rows)].tolist())
    if cluster.spent:
        for job in jobs:
            waits = job.state is State.QUEUED and job.wanted is DesiredState.RUN
            if waits and job.gang.gpus_per_worker and job.tenant in cluster.spent:
                yield job.job_id
