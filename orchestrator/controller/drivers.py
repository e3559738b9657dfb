"""The drivers of all attempts: started and stopped as the states of the jobs demand.

A driver gets a soft stop first, and then hard stops at growing intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import Final

from cluster.backend import Backend, Launch, Submission
from cluster.errors import BackendUnreachable, Fenced, FleetuneError, LaunchRefused
from orchestrator.queue.clock import Clock, Timing
from orchestrator.queue.errors import NotLeader, StoreBroken
from orchestrator.queue.names import job_of
from orchestrator.queue.records import Job
from orchestrator.queue.states import HOLDS_A_LEASE, State
from orchestrator.queue.store import Store
from orchestrator.queue.transitions import Observation

LaunchOf = Callable[[Job], Launch]
# Most seconds between hard stops; on Ray each one is a separate job, and an unkillable process needs many.
_LONGEST_PAUSE_S: Final = 3600.0


class Drivers:
    """Starts and stops drivers during one leadership. Times are of the steady clock.

    Attributes:
        refused: submissions that can never start, and why.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        clock: Clock,
        timing: Timing,
        launch_of: LaunchOf,
        epoch: int,
        go_on: Callable[[], None],
    ) -> None:
        """`go_on`: called before each start and stop; raises NotLeader."""
        self._store, self._backend, self._clock, self._timing = store, backend, clock, timing
        self._launch_of, self._epoch, self._go_on = launch_of, epoch, go_on
        self._stops = Stops(backend)
        self._doubtful: dict[str, float] = {}  # submission -> time until which it may still appear
        self.refused: dict[str, str] = {}

    @property
    def doubtful(self) -> frozenset[str]:
        """Submissions whose start got no answer, so that they may still appear."""
        steady_s = self._clock.steady_s()
        return frozenset(name for name, until_s in self._doubtful.items() if steady_s < until_s)

    def slow(self, jobs: Iterable[Job]) -> frozenset[str]:
        """Return the ids of jobs that have taken long to stop."""
        steady_s = self._clock.steady_s()
        return frozenset(
            job.job_id
            for job in jobs
            if job.state is State.STOPPING
            and steady_s - self._stops.asked_s(job.submission, steady_s) > self._slow_s(job)
        )

    def _slow_s(self, job: Job) -> float:
        return self._timing.grace_of(job.checkpoint_s) + self._timing.slow_s - self._timing.grace_s

    def act(self, jobs: Iterable[Job], seen: Observation) -> None:
        """Stop and start drivers, and end those without a lease. A call that fails does not hold up the others.

        Args:
            jobs: all jobs that have not ended.

        Raises:
            BackendUnreachable: some call failed. More generally, the first error is raised after all calls were made.
        """
        held = [job for job in jobs if job.state in HOLDS_A_LEASE]
        current = {job.submission for job in held}
        strays = [one for name, one in seen.submissions.items() if name not in current]
        tasks: list[Callable[[], None]] = [partial(self._stop, job) for job in held if _is_to_stop(job, seen)]
        tasks += [partial(self._start, job) for job in held if self._is_to_start(job, seen)]
        tasks.append(partial(self._end_strays, strays))
        self._forget_all_but(current, seen)
        failed: Exception | None = None
        for task in tasks:
            self._go_on()
            try:
                task()
            except (NotLeader, Fenced, StoreBroken):
                raise
            except Exception as error:  # including internal errors
                failed = failed or error
        if failed is not None:
            raise failed

    def _stop(self, job: Job) -> None:
        self._stops.stop(job.submission, self._clock.steady_s(), self._timing.grace_of(job.checkpoint_s))

    def _is_to_start(self, job: Job, seen: Observation) -> bool:
        known = job.submission in seen.submissions or job.submission in self.refused
        return job.state is State.STARTING and not known

    def _start(self, job: Job) -> None:
        try:
            launch = self._launch_of(job)
        except (StoreBroken, BackendUnreachable):
            raise
        except FleetuneError as error:
            self.refused[job.submission] = str(error)
            return
        try:
            self._backend.start(launch, self._epoch)
        except LaunchRefused as error:
            self.refused[job.submission] = str(error)
        except BackendUnreachable:
            self._doubtful[job.submission] = self._clock.steady_s() + self._timing.doubt_s
            raise

    def _end_strays(self, strays: Sequence[Submission]) -> None:
        """End and forget programs that have no lease any more.

        The store decides, because a leader that was frozen may have outdated knowledge. A program whose job the store
        does not know or cannot read is left alone: another queue may use the same machines.
        """
        known = self._store.find({job_of(one.submission) for one in strays}) if strays else {}
        over = [one for one in strays if _is_over(known.get(job_of(one.submission)), one.submission)]
        for one in over:
            if not one.ended:
                self._stops.end(one.submission, self._clock.steady_s(), self._timing.grace_s)
        self._backend.forget([one.submission for one in over if one.ended])

    def _forget_all_but(self, current: set[str], seen: Observation) -> None:
        """Forget submissions that are over."""
        self._stops.forget_all_but(current | seen.submissions.keys())
        for known in (self.refused, self._doubtful):
            for name in known.keys() - current:
                del known[name]


def _is_to_stop(job: Job, seen: Observation) -> bool:
    there = seen.submissions.get(job.submission)
    return job.state is State.STOPPING and there is not None and not there.ended


def _is_over(job: Job | None, submission: str) -> bool:
    return job is not None and not (job.state in HOLDS_A_LEASE and job.submission == submission)


class Stops:
    """The stops that one leadership has requested. Times are of the steady clock."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._asked: dict[str, float] = {}  # submission -> time of the soft stop
        self._hard: dict[str, tuple[float, float]] = {}  # submission -> (time of the next hard stop, pause after it)

    def asked_s(self, submission: str, default: float) -> float:
        """When a driver was first told to stop."""
        return self._asked.get(submission, default)

    def stop(self, submission: str, steady_s: float, grace_s: float) -> None:
        """Request a soft stop once, and hard stops after the grace period. Raises BackendUnreachable.

        Args:
            grace_s: time between the soft stop and the first hard one.
        """
        if submission not in self._asked:
            self._backend.stop(submission)
            self._asked[submission] = steady_s
        elif steady_s - self._asked[submission] > grace_s:
            self.end(submission, steady_s, grace_s)

    def end(self, submission: str, steady_s: float, pause_s: float) -> None:
        """Request a hard stop, unless one was requested in the last `pause_s` seconds. Raises BackendUnreachable."""
        next_s, pause_s = self._hard.get(submission, (steady_s, pause_s))
        if steady_s >= next_s:
            self._backend.stop(submission, hard=True)
            self._hard[submission] = steady_s + pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)

    def forget_all_but(self, current: Container[str]) -> None:
        self._asked = {name: at_s for name, at_s in self._asked.items() if name in current}
        self._hard = {name: when for name, when in self._hard.items() if name in current}
