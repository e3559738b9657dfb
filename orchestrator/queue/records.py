"""What the store keeps. Values only; times are seconds since 1970 (UTC), sizes are GPUs unless they say CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cluster.capacity.gang import Gang
from orchestrator.queue.states import Reason, State, Wanted

NodePlaces = tuple[tuple[str, int], ...]  # (node id, workers there)


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is submitted. The store gives it an id: the name and a few random characters.

    Attributes:
        spec: the resolved spec, as JSON.
        after: ids of jobs that must have succeeded before.
        not_before_s: it may not start earlier.
        max_runtime_s: of all attempts together.
        on_end: what is to be submitted once it has ended (`jobs.spec.queue.OnEnd` as JSON); '': nothing.
        client: with whose end it is cancelled; None: it outlives whoever has submitted it.
        sizes: numbers of workers that it can go on with, ascending, the first of them its gang's; empty: only with
            those of its gang.
        labels: facts that tell the job from others, for people.
        most_queued: it is refused where its tenant would have more QUEUED jobs than this. None: no limit.
    """

    name: str
    kind: str
    tenant: str
    spec: str
    gang: Gang
    submitted_by: str
    priority: int = 0
    after: tuple[str, ...] = ()
    not_before_s: float | None = None
    max_runtime_s: float | None = None
    preemptible: bool = True
    on_end: str = ""
    client: str | None = None
    sizes: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    most_queued: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the queue sees it; its spec is kept apart.

    Its fields stand in the order of the columns of its row; `gang` stands for four of them (`store.database.rows`).

    Attributes:
        number: 1, 2, ... in the order of submission.
        gang: what it holds or has held last; of one that waits, the least that it starts with.
        message: one line for people on the reason.
        attempt: the newest, counted from 1; 0: there was none. Every lease is of one attempt.
        placement: of its lease; empty while it holds none.
        waiting_since_s: since when it is QUEUED, or was last paused or let go on; of a QUEUED job. See
            `retry.waits_s`.
        waited_s: in the queue before, between attempts.
        started_s: when its lease was granted; of a job that holds one.
        attained_s: for how long it has held leases in earlier attempts.
        remaining_s: running time left as the run measures it; None where nobody knows.
        interruptions: how often the scheduler has stopped it.
        interruption_cost_s: what stopping it now would cost, as measured.
        retries: how often it went back to the queue for each reason, since `restored_at_step`.
        restored_at_step: the step of the checkpoint that last restored the retry budgets.
        run: root of the run that it writes, a path or URL.
        metrics: last known, by name.
        changed: number of the store's newest change of this row. A mere sign of life after the first one of an attempt,
            and what is done for `on_end`, do not count as one.
        on_end, client, sizes, labels: see NewJob.
        followed: `changed` of the end that was followed by what `on_end` says; 0: none was.
        heard_s: when the driver of its newest attempt was last heard of.
        most_workers: of its lease: its driver has given the others back and needs no more in this attempt. None: it has
            given nothing back.
    """

    number: int
    job_id: str
    name: str
    kind: str
    tenant: str
    submitted_by: str
    gang: Gang
    priority: int
    after: tuple[str, ...]
    not_before_s: float | None
    max_runtime_s: float | None
    preemptible: bool
    submitted_s: float
    wanted: Wanted
    state: State
    reason: Reason
    message: str
    attempt: int
    placement: NodePlaces
    waiting_since_s: float
    waited_s: float
    started_s: float | None
    attained_s: float
    ended_s: float | None
    remaining_s: float | None
    interruptions: int
    interruption_cost_s: float
    retries: Mapping[Reason, int]
    run: str | None
    step: int
    total_steps: int | None
    metrics: Mapping[str, float]
    changed: int
    on_end: str = ""
    followed: int = 0
    heard_s: float | None = None
    client: str | None = None
    sizes: tuple[int, ...] = ()
    restored_at_step: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    most_workers: int | None = None

    @property
    def usable_sizes(self) -> tuple[int, ...]:
        """Those of its `sizes` that it may go on with now."""
        return tuple(size for size in self.sizes if self.most_workers is None or size <= self.most_workers)

    @property
    def submission(self) -> str:
        """The name of its newest attempt, under which the cluster knows it."""
        return f"{self.job_id}-{self.attempt}"


@dataclass(frozen=True, slots=True)
class Move:
    """One step of one job, done only if it still is where it is expected to be.

    Attributes:
        expect, attempt: state and newest attempt of the job before.
        placement: the lease that is granted, for a new attempt; only to STARTING.
    """

    job_id: str
    expect: State
    attempt: int
    to: State
    reason: Reason
    message: str = ""
    placement: NodePlaces = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What a driver says of its run. None: as before.

    Attributes:
        saved_step: step of its newest checkpoint. A newer one than `Job.restored_at_step` restores the retry budgets.
    """

    job_id: str
    attempt: int
    run: str | None = None
    step: int | None = None
    total_steps: int | None = None
    saved_step: int | None = None
    remaining_s: float | None = None
    interruption_cost_s: float | None = None
    metrics: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """Nodes that one attempt holds or has held. What it has given back before its end is a lease of its own.

    Attributes:
        released_s: None while it is held.
    """

    job_id: str
    attempt: int
    tenant: str
    gang: Gang
    placement: NodePlaces
    granted_s: float
    released_s: float | None


@dataclass(frozen=True, slots=True)
class QueueEvent:
    """Something that happened to a job, or to the cluster where it names none."""

    at_s: float
    kind: str
    message: str
    job_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0  # given by the store


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row of the store that this release cannot read: a newer one has written it, or it is damaged.

    Attributes:
        table: job, lease, event, tenant, token or node-rule.
        name: of a job, its id.
        tenant: of a job; None: of no tenant.
        problem: one line on what cannot be read.
    """

    table: str
    name: str
    tenant: str | None
    problem: str


class NodeOrder(StrEnum):
    USE = "use"
    CORDON = "cordon"  # nothing new is put there
    DRAIN = "drain"  # and what runs there is to leave


@dataclass(frozen=True, slots=True)
class NodeRule:
    """What somebody has ordered of a node. Nodes without one are in use.

    Attributes:
        deadline_s: of a drain: from then on jobs that may not be interrupted are stopped too. None: they never are.
    """

    node_id: str
    order: NodeOrder
    by: str
    reason: str
    since_s: float
    deadline_s: float | None = None


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"  # of a tenant: submits, and moves the tenant's jobs
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Token:
    """Who may do what. The token itself is not kept.

    Attributes:
        digest: SHA-256 of the token, in hexadecimal digits.
        tenant: None for an admin, who may act for all.
        expires_s: from when on the token is refused. None: never.
    """

    name: str
    digest: str
    role: Role
    tenant: str | None
    created_s: float
    revoked_s: float | None = None
    expires_s: float | None = None

    def has_expired(self, now_s: float) -> bool:
        return self.expires_s is not None and now_s >= self.expires_s


@dataclass(frozen=True, slots=True)
class Leadership:
    """The right to move jobs. `epoch` grows with each new holder; a write with an older one is refused."""

    holder: str
    epoch: int
    url: str
    expires_s: float
