"""What keeps the queue: the contract of every store.

One store may be used by several processes at once. Whatever returns has been written durably; whatever raises has
written nothing. Each call is one transaction. Readers see whole transactions only. (One thing nobody can promise: if a
database server goes away while it commits, StoreBroken is raised for what it may have written. Moves and keys make it
safe to try again.)

Who moves jobs holds the leadership, and says its epoch with every write that depends on it. A store refuses the write
if somebody else has led since: a server that was frozen and wakes up late can do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.queue.months import MonthTotal
from orchestrator.queue.records import (
    Job,
    Leadership,
    Lease,
    Measured,
    Move,
    NewJob,
    NodePlaces,
    NodeRule,
    QueueEvent,
    Token,
    UnreadableRow,
)
from orchestrator.queue.states import State, Wanted
from orchestrator.queue.tenants import Tenant


@dataclass(frozen=True)
class SubmissionKey:
    """Given by a client, so that it can send again: the same key and content give the same jobs.

    Attributes:
        scope: whose key it is; keys of others are other keys.
        digest: of the content.
    """

    scope: str
    key: str
    digest: str


@dataclass(frozen=True)
class Filter:
    """Which jobs. Empty: all; what is given must hold together."""

    tenant: str | None = None
    states: tuple[State, ...] = ()
    name: str | None = None  # start of a job's id


@dataclass(frozen=True)
class Change:
    """What somebody asks of a job; None: as before."""

    wanted: Wanted | None = None
    priority: int | None = None


class Store(Protocol):
    """All times are given: a store has no clock. Lists are in the order of submission unless they say otherwise."""

    def close(self) -> None: ...

    # Jobs, for everybody

    def submit(self, jobs: Sequence[NewJob], now_s: float, key: SubmissionKey | None = None) -> tuple[Job, ...]:
        """All of them, QUEUED, or none.

        Raises:
            UnknownJob: a parent does not exist.
            UnknownTenant: nobody made it.
            KeyReused: the key was used for something else.
            TooManyQueued: a tenant would have more jobs in the queue than it may (`NewJob.most_queued`).
        """

    def submitted(self, key: SubmissionKey) -> tuple[Job, ...] | None:
        """What was submitted with a key, as it is now; None: nothing was. Raises KeyReused."""

    def job(self, job_id: str) -> Job:
        """Raises UnknownJob, with the ids that it is the start of, or UnreadableJob."""

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """Those of these jobs that exist and can be read, by id."""

    def spec(self, job_id: str) -> str:
        """Raises UnknownJob."""

    def jobs(
        self, which: Filter = ..., *, before: int | None = None, after: int | None = None, limit: int = 100
    ) -> list[Job]:
        """Return a page: the newest first, those whose number is below `before`.

        With `after` it is the oldest first, those whose number is above.
        """

    def count(self, which: Filter = ...) -> dict[State, int]:
        """By state; states without a job are left out."""

    def ask(self, job_id: str, change: Change, now_s: float, by: str) -> Job:
        """Note what is wanted of a job, with an event. A QUEUED one that is paused does not wait.

        Raises:
            UnknownJob: there is none.
            JobEnded: it is too late.
        """

    def retry(self, job_id: str, now_s: float, by: str) -> Job:
        """Put a job that has FAILED or was CANCELLED back into the queue, with fresh budgets of retries.

        Raises:
            UnknownJob: there is none.
            NotEnded: it has not ended.
            JobEnded: it has succeeded.
        """

    def release(self, job_id: str, attempt: int, now_s: float, by: str) -> Job:
        """Close the lease of a STOPPING job whose driver nobody can see end, with an event.

        Raises:
            UnknownJob: there is none.
            NotReleasable: it is not STOPPING, or in another attempt by now.
        """

    def give_back(self, job_id: str, attempt: int, kept: NodePlaces, now_s: float) -> Job:
        """Shrink the lease of an elastic job to `kept`, with an event; the job as it is now.

        What is given back becomes a lease that was released now. The job counts with the workers that it keeps, and
        gets no more in this attempt. Passed over where the attempt is not the newest or holds no lease, and where
        `kept` is no smaller part of the lease or no size of the job.

        Raises:
            UnknownJob: there is none.
        """

    # Jobs, for the leader

    def last_change(self) -> int:
        """Return a number that no change is above. The next change gets a larger one."""

    def changes(self, after: int, limit: int = 10_000) -> list[Job]:
        """Jobs whose `changed` is above, in that order. With 0 first, those that have ended are left out."""

    def move(self, epoch: int, moves: Sequence[Move], now_s: float) -> list[Job]:
        """Do what still can be done, each with an event; the jobs that were moved, as they are now.

        A move is passed over if its job is in another state or attempt by now. One that MAY_GO_TO does not have is an
        error of the caller (ValueError), and so is a placement without STARTING, or STARTING without one. Moves of one
        job follow each other. The job's columns follow:
        out of QUEUED: `waited_s` grows by `retry.waits_s`, less what went by before its last parent had ended;
        to STARTING: `attempt` is one more, a lease is opened, `placement` and `started_s` are set, and nobody has
        heard of its driver;
        from a state that holds a lease to one that does not: the lease is closed, `attained_s` grows, `placement` and
        `started_s` are cleared;
        to QUEUED: `waiting_since_s` is now; to an end: `ended_s` is;
        from STOPPING to QUEUED: `retries[reason]` is one more, and `interruptions` if the scheduler did it; PAUSED
        counts as neither.

        Raises:
            NotLeader: somebody has led since.
        """

    def pull_back(self, epoch: int, now_s: float) -> None:
        """Of jobs that have not ended: what is noted to have begun later than now (`started_s`, `waiting_since_s`) has
        begun now. For the leader, after a clock that was ahead was put right.

        Raises:
            NotLeader: somebody has led since.
        """

    def measure(self, measured: Sequence[Measured], now_s: float) -> None:
        """Note what drivers say, and that they were heard. Passed over where the attempt is not the newest, or the job
        has ended.

        A checkpoint that is newer than the one at `restored_at_step` clears `retries`, and is noted there.
        Metrics are added to those that are known by other names. Durations that are no finite numbers say nothing.
        `changed` grows only where something else than `heard_s` is new, and when an attempt is heard of for the first
        time.
        """

    def heard(self) -> Mapping[str, float | None]:
        """When the drivers of jobs that are STARTING or RUNNING were last heard of, by the name of the attempt."""

    def followups_due(self, limit: int = 100) -> list[Job]:
        """Jobs with an `on_end` that have ended, and whose end nobody has noted as followed."""

    def followed(self, job: Job) -> None:
        """Note that this end of the job was followed. If it has been put back since, its next end is another one."""

    def of_clients(self) -> list[Job]:
        """Jobs of clients that have not ended."""

    def unreadable(self) -> list[UnreadableRow]:
        """Rows that were met by this store object and could not be read. Every list leaves them out."""

    # Leases, events

    def leases(self, *, held: bool = False, since_s: float = 0.0, until_s: float = math.inf) -> list[Lease]:
        """Those that are held, or those that were held between two times, in the order of granting."""

    def decayed_use(self, now_s: float, half_life_s: float) -> dict[str, float]:
        """Decayed GPU-seconds by tenant, as `shares.used_of` finds them in the leases."""

    def month_totals(self, at_s: float, now_s: float, *, held: bool = True) -> list[MonthTotal]:
        """What each tenant has held in the month that contains `at_s`, with the leases that were removed since.

        Args:
            held: leases that are held count, up to now.
        """

    def prunable(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        """Jobs that ended before a time and that nobody needs, the oldest first, and how many attempts each had.

        A job is needed while another one waits for it, or while what is to follow its end has not been submitted.
        """

    def prune(self, epoch: int, job_ids: Sequence[str], before_s: float) -> int:
        """Remove those of these jobs that are still prunable, and some old events; how many rows of jobs and events.

        Their specs, leases, events and keys go with them. What their leases have held stays known (`used`).

        Raises:
            NotLeader: somebody has led since.
        """

    def add_events(self, events: Sequence[QueueEvent]) -> None: ...

    def last_event(self) -> int:
        """Return a number that no event is above. The next event gets a larger one."""

    def events(
        self, job_id: str | None = None, *, after: int = 0, before: int | None = None, limit: int = 1000
    ) -> list[QueueEvent]:
        """Oldest first; of one job, or of all and of the cluster.

        With `before` it is the newest first, those whose number is below.
        """

    # Leadership

    def lead(self, holder: str, url: str, now_s: float, for_s: float) -> Leadership | None:
        """Take the leadership or prolong one's own; None while another one's has not expired."""

    def leader(self) -> Leadership | None:
        """Whoever was the last, expired or not."""

    def resign(self, holder: str) -> None:
        """End one's own leadership now."""

    # What the cluster is to know

    def tenants(self) -> list[Tenant]: ...

    def put_tenant(self, tenant: Tenant, now_s: float) -> None:
        """Make or change one."""

    def node_rules(self) -> list[NodeRule]: ...

    def put_node_rule(self, rule: NodeRule) -> None:
        """In place of the one before; NodeOrder.USE takes it away."""

    def tokens(self) -> list[Token]: ...

    def add_token(self, token: Token) -> None:
        """Raises NameTaken."""

    def revoke_token(self, name: str, now_s: float) -> None:
        """Raises UnknownToken."""

    # Small things by name: the cluster's id, the newest time that was seen

    def facts(self) -> Mapping[str, str]: ...

    def put_facts(self, facts: Mapping[str, str], *, keep: bool = False) -> None:
        """`keep`: those that are there already stay as they are."""
