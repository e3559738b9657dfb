"""The contract of every store, which keeps the queue.

Several processes may use one store at once. Each call is one transaction: if it returns, it has written durably; if it
raises, it has written nothing. Readers see whole transactions only. (One exception is unavoidable: if a database server
goes away during a commit, StoreBroken is raised although the write may have happened. Expected states of transitions
and submission keys make it safe to try again.)

The server that moves jobs holds the leadership, and passes its epoch with every write that depends on it. The store
refuses the write if another server has led since, so a server that was frozen and wakes up late can do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.queue.months import MonthTotal
from orchestrator.queue.records import (
    Job,
    Leadership,
    Lease,
    Measured,
    NewJob,
    NodePlaces,
    NodeRule,
    QueueEvent,
    Token,
    Transition,
    UnreadableRow,
)
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.tenants import Tenant


@dataclass(frozen=True)
class SubmissionKey:
    """An idempotency key from a client, which makes it safe to send a submission again.

    The same key with the same content gives the same jobs.

    Attributes:
        scope: namespace of the key: equal keys in different scopes are different.
        digest: digest of the content.
    """

    scope: str
    key: str
    digest: str


@dataclass(frozen=True)
class Filter:
    """Selects the jobs that meet all conditions. Without conditions, it selects all jobs."""

    tenant: str | None = None
    states: tuple[State, ...] = ()
    name: str | None = None  # prefix of the job's id


@dataclass(frozen=True)
class Change:
    """A request to change a job. None: unchanged."""

    wanted: DesiredState | None = None
    priority: int | None = None


class Store(Protocol):
    """A store. It has no clock: all times are arguments. Lists are in order of submission unless noted."""

    def close(self) -> None: ...

    # Jobs: for all callers

    def submit(self, jobs: Sequence[NewJob], now_s: float, key: SubmissionKey | None = None) -> tuple[Job, ...]:
        """Add all of these jobs as QUEUED, or none.

        Raises:
            UnknownJob: a parent does not exist.
            UnknownTenant: the tenant does not exist.
            KeyReused: the key was used with other content.
            TooManyQueued: a tenant would have more jobs in the queue than allowed (`NewJob.most_queued`).
        """

    def submitted(self, key: SubmissionKey) -> tuple[Job, ...] | None:
        """Return the jobs that were submitted with a key, in their current state; None: there are none.

        Raises KeyReused.
        """

    def job(self, job_id: str) -> Job:
        """Return a job. Raises UnknownJob, which names jobs whose ids begin with `job_id`, or UnreadableJob."""

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """Return those of these jobs that exist and can be read, by id."""

    def spec(self, job_id: str) -> str:
        """Return the spec of a job. Raises UnknownJob."""

    def jobs(
        self, which: Filter = ..., *, before: int | None = None, after: int | None = None, limit: int = 100
    ) -> list[Job]:
        """Return a page of jobs, the newest first, with numbers below `before`.

        With `after`, it has the oldest first, with numbers above `after`.
        """

    def count(self, which: Filter = ...) -> dict[State, int]:
        """Count jobs by state. States without a job are left out."""

    def ask(self, job_id: str, change: Change, now_s: float, by: str) -> Job:
        """Record a requested change of a job, with an event. While a QUEUED job is paused, its wait does not count.

        Raises:
            UnknownJob: the job does not exist.
            JobEnded: the job has ended, or it is stopping because it was cancelled and is to run or to wait.
        """

    def retry(self, job_id: str, now_s: float, by: str) -> Job:
        """Put a job that has FAILED or was CANCELLED back into the queue.

        Its retry budgets and its `max_runtime_s` begin anew.

        Raises:
            UnknownJob: the job does not exist.
            NotEnded: the job has not ended.
            JobEnded: the job has succeeded.
            TooManyQueued: the tenant has reached its limit of queued jobs.
        """

    def release(self, job_id: str, attempt: int, now_s: float, by: str) -> Job:
        """Close the lease of a STOPPING job whose driver cannot be seen to end, with an event.

        Raises:
            UnknownJob: the job does not exist.
            NotReleasable: the job is not STOPPING, or is in another attempt.
        """

    def give_back(self, job_id: str, attempt: int, kept: NodePlaces, now_s: float) -> Job:
        """Shrink the lease of an elastic job to `kept`, with an event. Returns the job.

        The nodes given back become a separate lease, released now. The job counts with the workers that it keeps, and
        gets no more in this attempt. Nothing is changed if the attempt is not the newest or holds no lease, or if
        `kept` is not a smaller part of the lease with a number of workers from the job's `sizes`.

        Raises:
            UnknownJob: the job does not exist.
        """

    # Jobs: for the leader

    def last_change(self) -> int:
        """Return a number that no change is above. The next change gets a larger one."""

    def changes(self, after: int, limit: int = 10_000) -> list[Job]:
        """Return jobs whose `changed` is above `after`, in that order. With `after` 0, ended jobs are left out."""

    def apply_transitions(self, epoch: int, transitions: Sequence[Transition], now_s: float) -> list[Job]:
        """Make the transitions that are still possible, each with an event. Returns the changed jobs.

        A transition is skipped if its job is in another state or attempt. A transition that MAY_GO_TO does not allow is
        an error of the caller (ValueError), and so is a placement without STARTING, or STARTING without one. Several
        transitions of one job are made one after the other. Columns of the job change as follows:

        out of QUEUED: `waited_s` grows by `retry.waits_s`, not counting time before its last parent ended;
        to STARTING: `attempt` is incremented, a lease is opened, `placement` and `started_s` are set, `heard_s` is
        cleared; from a state that holds a lease to one that does not: the lease is closed, `attained_s` grows,
        `placement` and `started_s` are cleared;
        to QUEUED: `waiting_since_s` is now; to an ended state: `ended_s` is now;
        from STOPPING to QUEUED: `retries[reason]` is incremented, and so is `interruptions` if the scheduler stopped
        the job; PAUSED counts as neither.

        Raises:
            NotLeader: another server has led since.
        """

    def pull_back(self, epoch: int, now_s: float) -> None:
        """Set `started_s` and `waiting_since_s` of jobs that have not ended to now if they are in the future.

        For the leader, after a clock that was ahead has been corrected.

        Raises:
            NotLeader: another server has led since.
        """

    def measure(self, measured: Sequence[Measured], now_s: float) -> None:
        """Record reports of drivers. Skipped if the attempt is not the newest, or the job has ended.

        A checkpoint newer than `restored_at_step` clears `retries` and becomes the new `restored_at_step`. Metrics are
        merged with the known ones by name. Durations that are not finite are ignored. `changed` grows only if something
        other than `heard_s` changes, or when an attempt is heard for the first time.
        """

    def heard(self) -> Mapping[str, float | None]:
        """Return when the drivers of STARTING and RUNNING jobs were last heard, by the name of the attempt."""

    def followups_due(self, limit: int = 100) -> list[Job]:
        """Return ended jobs with an `on_end` whose end has not been marked as followed."""

    def followed(self, job: Job) -> None:
        """Mark this end of the job as followed.

        If the job was put back into the queue since, its next end is not marked.
        """

    def of_clients(self) -> list[Job]:
        """Return jobs of clients that have not ended."""

    def unreadable(self) -> list[UnreadableRow]:
        """Return rows that this store object has met and could not read. All lists leave them out."""

    # Leases and events

    def leases(self, *, held: bool = False, since_s: float = 0.0) -> list[Lease]:
        """Return leases that are held, or that were held at some time since then, in the order of granting."""

    def decayed_use(self, now_s: float, half_life_s: float) -> dict[str, float]:
        """Return decayed GPU-seconds by tenant, as `fair_share.used_of_spans` computes them from the leases."""

    def month_totals(self, at_s: float, now_s: float, *, held: bool = True) -> list[MonthTotal]:
        """Return what each tenant has held in the month that contains `at_s`, including leases that were removed since.

        Args:
            held: also count leases that are still held, up to now.
        """

    def prunable(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """Return (job id, number of attempts) of jobs that ended before a time and are not needed, oldest first.

        A job is needed while another one waits for it, or while its `on_end` has not been processed.
        """

    def prune(self, epoch: int, job_ids: Sequence[str], before_s: float) -> int:
        """Remove those of these jobs that are still prunable, and some old events. Returns the number of removed rows.

        Their specs, leases, events and keys are removed too. `month_totals` still counts their leases.

        Raises:
            NotLeader: another server has led since.
        """

    def add_events(self, events: Sequence[QueueEvent]) -> None: ...

    def last_event(self) -> int:
        """Return a number that no event is above. The next event gets a larger one."""

    def events(
        self, job_id: str | None = None, *, after: int = 0, before: int | None = None, limit: int = 1000
    ) -> list[QueueEvent]:
        """Return events, the oldest first: of one job, or of all jobs and the cluster.

        With `before`, the newest are first, with numbers below `before`.
        """

    # Leadership

    def lead(self, holder: str, url: str, now_s: float, for_s: float) -> Leadership | None:
        """Take the leadership, or renew it; None: another holder's has not expired."""

    def leader(self) -> Leadership | None:
        """Return the last leadership, expired or not."""

    def resign(self, holder: str) -> None:
        """End this holder's leadership now."""

    # Tenants, nodes and tokens

    def tenants(self) -> list[Tenant]: ...

    def put_tenant(self, tenant: Tenant, now_s: float) -> None:
        """Create or replace a tenant."""

    def change_tenant(
        self, name: str, change: Callable[[Tenant | None], Tenant], now_s: float
    ) -> tuple[Tenant | None, Tenant]:
        """Create or change a tenant in one transaction. Returns it before and after.

        Args:
            change: returns the new settings from those before; None: there is no such tenant. What it raises is raised,
                and nothing is written.
        """

    def node_rules(self) -> list[NodeRule]: ...

    def put_node_rule(self, rule: NodeRule) -> None:
        """Replace the rule of a node; NodeOrder.USE removes it."""

    def tokens(self) -> list[Token]: ...

    def add_token(self, token: Token, event: QueueEvent | None = None) -> None:
        """Add a token, with an event if given. Raises NameTaken."""

    def revoke_token(self, name: str, now_s: float, event: QueueEvent | None = None) -> None:
        """Revoke a token, with an event if given. Raises UnknownToken."""

    # Small values by name, such as the cluster's id and the newest known time

    def facts(self) -> Mapping[str, str]: ...

    def put_facts(self, facts: Mapping[str, str], *, keep: bool = False, epoch: int | None = None) -> None:
        """Write facts.

        Args:
            keep: do not overwrite existing ones.
            epoch: of the leader that writes; None: any process may write.

        Raises:
            NotLeader: another server has led since.
        """
