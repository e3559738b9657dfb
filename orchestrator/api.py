"""What the server answers and is asked, over HTTP: shared by the server, the SDK and the command line.

Times are seconds since 1970 (UTC). Whatever is refused is answered with `Problem`, and one of these statuses: 400 what
was asked cannot be done; 401 no token, or one that is not known; 403 a token that may not do that; 404 there is no such
thing; 409 it is too late or too early for that, or the name is taken; 413 too large; 422 what was sent has the wrong
shape; 429 too many at once; 503 tried again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.capacity.gang import Gang
from jobs.spec.queue import MOST_PRIORITY, VARIABLE
from orchestrator.queue.records import Job
from orchestrator.queue.retry import waits_s
from orchestrator.queue.states import Reason, State, Wanted
from orchestrator.queue.tenants import MEMBERS_MAX_PRIORITY

API_VERSION: Final = "1"
MOST_JOBS: Final = 10_000  # of one submission
MOST_BYTES: Final = 64 << 20  # of one body
MOST_PAGE: Final = 1000


class Sent(BaseModel):
    """What a client sends: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Told(BaseModel):
    """What the server answers: unknown keys are passed over, so that a newer server may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True, ser_json_inf_nan="null")


class Problem(Told):
    """Why it was refused, and what to do.

    Attributes:
        error: name of the exception's class (`UnknownJob`, `SpecError`, ...).
        message: for people.
        queue: id of the queue whose server answers.
    """

    error: str
    message: str
    queue: str = ""


class Submission(Sent):
    """Jobs to be queued: all of them, or none.

    Attributes:
        specs: resolved, with a section `queue`; paths are absolute.
        key: given by the client, so that it can send again: the same key and specs give the same jobs.
        client: whose end takes these jobs along (an embedded orchestrator's clients); None: they outlive it.
    """

    specs: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=MOST_JOBS)
    key: str | None = Field(None, min_length=1, max_length=200)
    client: str | None = Field(None, min_length=1, max_length=200)


class JobView(Told):
    """A job, as everybody sees it who may.

    Attributes:
        placement: (node id, workers there) of its lease; empty while it holds none.
        on: the same with what people call the nodes.
        num_workers: that it has or has had last; of one that waits, the least that it starts with.
        sizes: numbers of workers that it can go on with, ascending; empty: with no other than `num_workers`.
        heard_s: when its driver was last heard of.
        run: root of the run that it writes; for a command None.
        metrics: last known, by name.
        changed: grows with each change of the job; see `GET /v1/changes`.
        waiting_since_s: of a QUEUED job, since when it has waited, or since it was paused or resumed.
        labels: facts that tell the job from others.
    """

    job_id: str
    number: int
    name: str
    kind: str
    tenant: str
    submitted_by: str
    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    accelerator_type: str | None
    priority: int
    after: tuple[str, ...]
    max_runtime_s: float | None
    preemptible: bool
    submitted_s: float
    wanted: Wanted
    state: State
    reason: Reason
    message: str
    attempt: int
    placement: tuple[tuple[str, int], ...]
    on: tuple[tuple[str, int], ...] = ()
    waited_s: float
    started_s: float | None
    attained_s: float
    ended_s: float | None
    remaining_s: float | None
    interruptions: int
    heard_s: float | None
    run: str | None
    step: int
    total_steps: int | None
    metrics: Mapping[str, float | None]
    changed: int
    sizes: tuple[int, ...] = ()
    waiting_since_s: float | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, now_s: float) -> JobView:
        """Fields have the values of the job's or its gang's fields with the same names, but for two."""
        values = dict(zip(_OF_JOB, _values(job), strict=True))
        values["waited_s"] += waits_s(job, now_s)
        if job.state is not State.QUEUED:
            del values["waiting_since_s"]
        return cls(**values)


_IN_GANG = JobView.model_fields.keys() & {one.name for one in fields(Gang)}
_OF_JOB = tuple(_IN_GANG | (JobView.model_fields.keys() & {one.name for one in fields(Job)}))
_values = attrgetter(*(f"gang.{name}" if name in _IN_GANG else name for name in _OF_JOB))


class JobPage(Told):
    """Newest first. `next`: what to give as `before` for the page after this one; None: this was the last.

    Oldest first if `after` was given; then `next` is what to give as `after`.

    `set_aside`: jobs that the server cannot read, which no page has, or cannot plan, each with the reason.
    """

    jobs: tuple[JobView, ...]
    next: int | None
    set_aside: tuple[str, ...] = ()


class Changes(Told):
    """Jobs that have changed, in that order; `last`: what to give as `after` the next time."""

    jobs: tuple[JobView, ...]
    last: int


class Counts(Told):
    states: Mapping[State, int]


class Priority(Sent):
    priority: int = Field(ge=-MOST_PRIORITY, le=MOST_PRIORITY)


class EventView(Told):
    number: int
    at_s: float
    kind: str
    message: str
    job_id: str | None


class Events(Told):
    """`last`: what to give as `after` the next time; others' events may lie between.

    If `before` was given, the newest are first, and `last` is what to give as `before`; 0: there are no others.
    """

    events: tuple[EventView, ...]
    last: int = 0


class WhyView(Told):
    """Why a job is where it is. Starts are seconds since 1970; None: nobody can say.

    Attributes:
        is_guess: no run time is known that the expected start could go by.
    """

    text: str
    expected_start_s: float | None
    earliest_start_s: float | None
    latest_start_s: float | None
    is_guess: bool = False


class LogSources(Told):
    """`output`: what its newest attempt has written to its terminal; `driver`, `rank-0`, ...: the logs of its run."""

    sources: tuple[str, ...]


class LogPart(Told):
    """Text from a byte on, whole lines where there are any.

    Attributes:
        next: the byte to go on from.
        ended: nothing more will come.
    """

    text: str
    next: int
    ended: bool


class MetricsPart(Told):
    """The records of a run's journal of metrics, in the order of steps; `next`: what to give as `after`."""

    records: tuple[dict[str, Any], ...]
    next: int


class NodeView(Told):
    """A machine. `name`: what people call it. `order`: use, cordon or drain, which stops all jobs at `deadline_s`."""

    node_id: str
    name: str = ""
    cpus: int
    gpus: int
    accelerator_type: str | None
    usable: bool
    foreign_cpus: int
    foreign_gpus: int
    order: str
    by: str
    reason: str
    since_s: float | None
    held: tuple[tuple[str, int], ...]
    deadline_s: float | None = None


class Nodes(Told):
    """`growth`: what an autoscaler may add, in words; empty where there is none."""

    nodes: tuple[NodeView, ...]
    growth: str = ""


class NodeOrderSent(Sent):
    """`deadline_s`: of a drain; seconds from now, after which jobs that may not be interrupted are stopped too."""

    order: Literal["use", "cordon", "drain"]
    reason: str = Field("", max_length=500)
    deadline_s: float | None = Field(None, ge=0.0, le=366 * 86400.0)


class QuotaSent(Sent):
    """GPUs of one type; None: of all types together."""

    accelerator_type: str | None = Field(None, min_length=1, max_length=100)
    gpus: int = Field(ge=0, le=1_000_000)


class RestrictionsSent(Sent):
    """All limits of a tenant's jobs; see `orchestrator.queue.tenants`. None: no limit."""

    max_priority: int = Field(MEMBERS_MAX_PRIORITY, ge=-MOST_PRIORITY, le=MOST_PRIORITY)
    max_queued_jobs: int | None = Field(None, ge=0, le=1_000_000_000)
    max_runtime_s: float | None = Field(None, gt=0.0, le=1e10)
    max_gpu_hours_per_month: float | None = Field(None, ge=0.0, le=1e12)
    roots: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] | None = Field(None, max_length=100)
    secrets: tuple[Annotated[str, Field(pattern=VARIABLE)], ...] = Field((), max_length=1000)


class TenantSent(Sent):
    """All of a tenant's settings. Without `restrictions`, these stay as they are."""

    weight: float = Field(1.0, gt=0.0, le=1_000_000.0)
    guaranteed: tuple[QuotaSent, ...] = Field((), max_length=100)
    limit: tuple[QuotaSent, ...] = Field((), max_length=100)
    restrictions: RestrictionsSent | None = None


class QuotaView(Told):
    accelerator_type: str | None
    gpus: int


class RestrictionsView(Told):
    """See `RestrictionsSent`."""

    max_priority: int = MEMBERS_MAX_PRIORITY
    max_queued_jobs: int | None = None
    max_runtime_s: float | None = None
    max_gpu_hours_per_month: float | None = None
    roots: tuple[str, ...] | None = None
    secrets: tuple[str, ...] = ()


class TenantView(Told):
    name: str
    weight: float
    guaranteed: tuple[QuotaView, ...]
    limit: tuple[QuotaView, ...]
    running: int
    queued: int
    gpus: int = Field(description="Held now.")
    restrictions: RestrictionsView = RestrictionsView()
    gpu_hours: float | None = Field(None, description="Of this month (UTC), where the tenant has a limit of them.")


class Tenants(Told):
    tenants: tuple[TenantView, ...]


class UsageRow(Told):
    """What a tenant has held in one month (UTC), `2026-11`."""

    month: str
    tenant: str
    gpu_hours: float
    cpu_hours: float = Field(description="Of gangs without GPUs.")
    jobs: int = Field(description="That have held a lease in it.")


class Usage(Told):
    rows: tuple[UsageRow, ...]


class TokenSent(Sent):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")
    role: Literal["admin", "member", "viewer"]
    tenant: str | None = Field(None, min_length=1, max_length=100)
    lifetime_s: float | None = Field(None, gt=0.0, le=1e10, description="After that it is refused; null: never.")


class TokenView(Told):
    name: str
    role: str
    tenant: str | None
    created_s: float
    revoked_s: float | None
    expires_s: float | None = None


class Tokens(Told):
    tokens: tuple[TokenView, ...]


class NewToken(Told):
    """The only time that it is shown."""

    name: str
    token: str


class Me(Told):
    """Who the token is of. Without tokens whoever gets in is an admin."""

    name: str
    role: str
    tenant: str | None
    tokens_needed: bool


class Server(Told):
    """`machine`: which one the server runs on, so that a client can tell whether it is the same."""

    version: str
    api: str
    leads: bool
    leader_url: str | None
    engine: Literal["ray", "local", "fake"]
    machine: str
    shared: tuple[str, ...] = Field(description="Folders that all machines see.")
    retention_days: float | None = Field(None, description="How long after their end jobs are kept; null: for ever.")
