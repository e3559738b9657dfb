"""The jobs that have not ended, as the leader knows them: a mirror of the store, brought up to date by its changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.queue.errors import UnknownJob, UnreadableJob
from orchestrator.queue.records import Job
from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import Store

_ALL, _PAGE = 10**9, 10_000
_WORDS = {State.FAILED: "has failed", State.CANCELLED: "was cancelled"}


class Book:
    """Changes only by `read` and `note`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: dict[str, Job] = {}
        self._children: dict[str, set[str]] = {}  # parent -> those that wait for it
        self._failed: dict[str, str] = {}
        self._succeeded: dict[str, float] = {}  # parent -> when it ended
        self._unasked: list[Job] = []  # whose parents are to be looked at, also where the store broke in between
        self._unknown: set[str] = set()  # parents that are there and cannot be read
        self._seen = 0

    @property
    def jobs(self) -> list[Job]:
        """In the order in which they became known; since their last parent has ended, as far as they come after any."""
        return list(self._jobs.values())

    @property
    def failed(self) -> Mapping[str, str]:
        """Jobs that others wait for in vain, with a word on it."""
        return self._failed

    def may_be_planned(self, job: Job) -> bool:
        """Not while nobody can say whether one that it waits for has succeeded."""
        return not job.after or self._unknown.isdisjoint(job.after)

    @property
    def newest(self) -> int:
        """Number of the newest change that is known."""
        return self._seen

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def read(self) -> list[Job]:
        """What has changed in the store since the last time."""
        found: list[Job] = []
        while page := self._store.changes(self._seen, _PAGE if self._seen else _ALL):
            self._seen = page[-1].changed
            self.note(page)
            self._unasked += page
            found += page
        self._ask_for_parents(self._unasked)
        self._unasked = []
        return found

    def note(self, jobs: Iterable[Job]) -> None:
        """Jobs as they are now. What is known to be newer stays."""
        for job in jobs:
            known = self._jobs.get(job.job_id)
            if known is not None and known.changed > job.changed:
                continue
            self._unknown.discard(job.job_id)
            if job.state in ENDED:
                self._take_out(job)
            else:
                self._jobs[job.job_id] = job
                self._failed.pop(job.job_id, None)
                for parent in job.after:
                    self._children.setdefault(parent, set()).add(job.job_id)
                    self._note_success(parent, (job.job_id,))

    def _take_out(self, job: Job) -> None:
        self._jobs.pop(job.job_id, None)
        self._note_end(job)
        for parent in job.after:
            waiting = self._children.get(parent, set())
            waiting.discard(job.job_id)
            if not waiting:
                self._children.pop(parent, None)
                self._failed.pop(parent, None)
                self._succeeded.pop(parent, None)

    def _note_end(self, job: Job) -> None:
        if job.job_id not in self._children:
            return
        if job.state in _WORDS:
            self._failed[job.job_id] = _WORDS[job.state]
        elif job.state is State.SUCCEEDED:
            self._succeeded[job.job_id] = job.ended_s or 0.0
            self._note_success(job.job_id, self._children[job.job_id])

    def _note_success(self, parent: str, children: Iterable[str]) -> None:
        """The time before a parent has ended is no waiting for nodes."""
        ended_s = self._succeeded.get(parent, 0.0)
        for child in children:
            job = self._jobs.get(child)
            if job is not None and job.waiting_since_s < ended_s:
                self._jobs[child] = replace(job, waiting_since_s=ended_s)

    def _ask_for_parents(self, jobs: Iterable[Job]) -> None:
        """Those that ended before anybody looked."""
        parents = {parent for job in jobs for parent in job.after if job.job_id in self._jobs}
        for parent in sorted(parents - self._jobs.keys() - self._failed.keys() - self._succeeded.keys()):
            try:
                self._note_end(self._store.job(parent))
            except UnknownJob:
                self._failed[parent] = "is not there any more"
            except UnreadableJob:
                self._unknown.add(parent)
