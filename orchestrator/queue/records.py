"""Records: the values that the store keeps. Times are seconds since 1970 (UTC); slots are GPUs unless noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from cluster.capacity.gang import Gang
from orchestrator.queue.names import submission_of
from orchestrator.queue.states import DesiredState, Reason, State

NodePlaces = tuple[tuple[str, int], ...]  # (node id, workers) for each node
_RAY_CLIENT: Final = "ray:"  # no other client's name may begin with it


@dataclass(frozen=True, slots=True)
class NewJob:
    """A submission. The store gives the job its id: the name and a few random characters.

    Attributes:
        spec: the resolved spec, as JSON.
        after: ids of jobs that must have succeeded before.
        not_before_s: earliest start.
        max_runtime_s: longest run time of all attempts together.
        on_end: what to submit after the job's end (`jobs.spec.queue.OnEnd` as JSON); '': nothing.
        client: the client whose end cancels the job; None: the job outlives its submitter.
        sizes: numbers of workers that the job can have, ascending; the first is its gang's. Empty: it is not elastic.
        labels: facts that distinguish the job from others, for people.
        most_queued: the submission is refused if its tenant would have more QUEUED jobs than this. None: no limit.
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
    """A job in the queue. Its spec is kept separately. Defaults are the values of a job that was just submitted.

    Its fields stand in the order of the columns of its row; `gang` stands for four of them (`store.database.rows`).

    Attributes:
        number: 1, 2, ... in the order of submission.
        gang: the gang of its current or last lease; of a waiting job, the smallest gang that it starts with.
        message: one line for people that explains the reason.
        attempt: the newest attempt, counted from 1; 0: none yet. Every lease belongs to one attempt.
        placement: the nodes of its lease; empty: it holds none.
        waiting_since_s: since when it is QUEUED, or was last paused or resumed; valid for QUEUED jobs. See
            `retry.waits_s`.
        waited_s: total of earlier waits, between attempts.
        started_s: when its lease was granted; None: it holds none.
        attained_s: how long it has held leases in earlier attempts.
        remaining_s: remaining running time as the run measures it; None: unknown.
        interruptions: how often the scheduler has stopped it.
        interruption_cost_s: measured cost of stopping it now.
        retries: how often it went back to the queue, by reason, since `restored_at_step`.
        restored_at_step: step of the checkpoint that last restored the retry budgets.
        run: root of its run, a path or URL.
        metrics: last known metrics, by name.
        changed: number of the store's newest change of this row. The first heartbeat of an attempt is a change. Later
            ones without news, and the processing of `on_end`, are none.
        on_end, client, sizes, labels: see NewJob.
        followed: `changed` of the last end for which `on_end` was processed; 0: none.
        heard_s: when the driver of its newest attempt was last heard.
        most_workers: most workers that its driver still needs in this attempt, after it has given back the others.
            None: it has given nothing back.
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
    wanted: DesiredState = DesiredState.RUN
    state: State = State.QUEUED
    reason: Reason = Reason.SUBMITTED
    message: str = ""
    attempt: int = 0
    placement: NodePlaces = ()
    waiting_since_s: float = 0.0
    waited_s: float = 0.0
    started_s: float | None = None
    attained_s: float = 0.0
    ended_s: float | None = None
    remaining_s: float | None = None
    interruptions: int = 0
    interruption_cost_s: float = 0.0
    retries: Mapping[Reason, int] = field(default_factory=dict)
    run: str | None = None
    step: int = 0
    total_steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    changed: int = 0
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
        """Those of its `sizes` that the job may go on with now."""
        return tuple(size for size in self.sizes if self.most_workers is None or size <= self.most_workers)

    @property
    def checkpoint_s(self) -> float | None:
        """Seconds that its newest checkpoint took, which drivers report among the metrics; None: unknown."""
        return self.metrics.get("checkpoint_s")

    @property
    def submission(self) -> str:
        """The name of its newest attempt on the cluster."""
        return submission_of(self.job_id, self.attempt)


@dataclass(frozen=True, slots=True)
class Transition:
    """One transition of one job. It is made only if the job is still in the expected state and attempt.

    Attributes:
        expect, attempt: the job's state and newest attempt before.
        placement: the lease to grant for a new attempt; only for transitions to STARTING.
        stopped_s: seconds of its wait in which its own tenant's limits stopped it; only for transitions to STARTING.
    """

    job_id: str
    expect: State
    attempt: int
    to: State
    reason: Reason
    message: str = ""
    placement: NodePlaces = ()
    stopped_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A driver's report about its run. None: unchanged.

    Attributes:
        saved_step: step of its newest checkpoint. If it is above `Job.restored_at_step`, it restores the retry budgets.
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
    """Nodes that one attempt holds or has held. What it gives back before its end becomes a separate lease.

    Attributes:
        released_s: None: it is still held.
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
    """Something that happened to a job or, if `job_id` is None, to the cluster."""

    at_s: float
    kind: str
    message: str
    job_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0  # assigned by the store


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row of the store that this release cannot read: it is damaged, or a newer release has written it.

    Attributes:
        table: job, lease, event, tenant, token or node-rule.
        name: key of the row; of a job, its id.
        tenant: tenant of the job; None: the row belongs to no tenant.
        problem: what cannot be read, in one line.
    """

    table: str
    name: str
    tenant: str | None
    problem: str


class NodeOrder(StrEnum):
    USE = "use"
    CORDON = "cordon"  # nothing new is placed there
    DRAIN = "drain"  # in addition, jobs that run there must leave


@dataclass(frozen=True, slots=True)
class NodeRule:
    """An order about a node. A node without a rule is in use.

    Attributes:
        deadline_s: end of a drain, after which non-preemptible jobs are stopped too. None: they are never stopped.
    """

    node_id: str
    order: NodeOrder
    by: str
    reason: str
    since_s: float
    deadline_s: float | None = None


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"  # of a tenant: may submit jobs, and change the tenant's jobs
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Token:
    """The rights of a caller. The token itself is not stored.

    Attributes:
        digest: SHA-256 of the token, as hexadecimal digits.
        tenant: None: an admin, who may act for all tenants.
        expires_s: time from which the token is refused. None: never.
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
    """The right to change jobs. `epoch` grows with each new holder; a write with an older epoch is refused."""

    holder: str
    epoch: int
    url: str
    expires_s: float


def client_of(submission: str, environment: str) -> str:
    """Make the name of the client that is a Ray-submitted program. `environment`: a digest of its environment."""
    return f"{_RAY_CLIENT}{submission}:{environment}"


def ray_submission_of(job: Job) -> str | None:
    """Return Ray's submission of the program that has queued this job; None: no such program has."""
    return job.client.split(":")[1] if job.client is not None and job.client.startswith(_RAY_CLIENT) else None


def environment_digest_of(job: Job) -> str:
    """Return the digest of the environment of the Ray-submitted program; '' if none has queued this job."""
    return job.client.rpartition(":")[2] if job.client is not None and ray_submission_of(job) is not None else ""
