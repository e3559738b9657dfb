"""A cache of the jobs that have not ended, kept up to date by reading the store's changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.queue.errors import UnknownJob, UnreadableJob
from orchestrator.queue.records import Job
from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import Store
from orchestrator.queue.wording import HAS_ENDED

_ALL, _PAGE = 10**9, 10_000


class JobCache:
    """The jobs that have not ended, as the leader knows them. Changed by `read` and `note` only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: dict[str, Job] = {}
        self._children: dict[str, set[str]] = {}  # parent -> jobs that wait for it
        self._failed: dict[str, str] = {}
        self._succeeded: dict[str, float] = {}  # parent -> when it ended
        self._unasked: list[Job] = []  # jobs whose parents are not looked up yet; kept if the store fails in between
        self._unknown: set[str] = set()  # parents that exist but cannot be read
        self._seen = 0

    @property
    def jobs(self) -> list[Job]:
        """Return the jobs in the order in which they became known."""
        return list(self._jobs.values())

    @property
    def failed(self) -> Mapping[str, str]:
        """Parents that did not succeed, each with a phrase for messages."""
        return self._failed

    def may_be_planned(self, job: Job) -> bool:
        """Whether the results of all parents are known. False while the row of a parent cannot be read."""
        return not job.after or self._unknown.isdisjoint(job.after)

    @property
    def newest(self) -> int:
        """The number of the newest change that was read."""
        return self._seen

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def read(self) -> list[Job]:
        """Read the store's changes since the last call. Returns the changed jobs."""
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
        """Take over the current state of jobs. States older than the known one are ignored."""
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
        if job.state is State.SUCCEEDED:
            self._succeeded[job.job_id] = job.ended_s or 0.0
            self._note_success(job.job_id, self._children[job.job_id])
        elif job.state in ENDED:
            self._failed[job.job_id] = HAS_ENDED[job.state]

    def _note_success(self, parent: str, children: Iterable[str]) -> None:
        """Let a child's wait begin when its parent has ended: the time before is not a wait for nodes."""
        ended_s = self._succeeded.get(parent, 0.0)
        for child in children:
            job = self._jobs.get(child)
            if job is not None and job.waiting_since_s < ended_s:
                self._jobs[child] = replace(job, waiting_since_s=ended_s)

    def _ask_for_parents(self, jobs: Iterable[Job]) -> None:
        """Look up parents that ended before this server read any changes."""
        parents = {parent for job in jobs for parent in job.after if job.job_id in self._jobs}
        for parent in sorted(parents - self._jobs.keys() - self._failed.keys() - self._succeeded.keys()):
            try:
                self._note_end(self._store.job(parent))
            except UnknownJob:
                self._failed[parent] = "is not there any more"
            except UnreadableJob:
                self._unknown.add(parent)
