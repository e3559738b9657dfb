"""Requests and answers over HTTP, shared by the server, the SDK and the command line.

Times are seconds since 1970 (UTC). A refused request is answered with `orchestrator.problem.Problem` and one of these
statuses: 400 it cannot be done; 401 no token, or an unknown one; 403 the token may not do this; 404 there is no such
thing; 409 it is too late or too early, or the name is taken; 413 the body is too large; 422 the body has the wrong
shape; 429 too many requests at once; 503 try again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.capacity.gang import Gang
from jobs.spec.queue import MOST_PRIORITY, VARIABLE
from orchestrator.queue.records import Job, NodeOrder, Role
from orchestrator.queue.retry import waits_s
from orchestrator.queue.states import DesiredState, Reason, State
from orchestrator.queue.tenants import DEFAULT_RESTRICTIONS, MEMBERS_MAX_PRIORITY, Restrictions

API_VERSION: Final = "1"
MOST_JOBS: Final = 10_000  # in one submission
MOST_BYTES: Final = 64 << 20  # in the body of a submission
MOST_PAGE: Final = 1000
LONGEST_KEY: Final = 200  # characters of an idempotency key
MONTH: Final = r"^[0-9]{4}-(0[1-9]|1[0-2])$"  # a month, as 2026-11
NEWEST: Final = 2**63 - 1  # no job, change or event has a larger number

Engine = Literal["ray", "local", "fake"]  # the backend that runs the workers of jobs


class Request(BaseModel):
    """A request. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Response(BaseModel):
    """An answer. Unknown keys are ignored, so that a newer server may add some."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True, ser_json_inf_nan="null")


class Submission(Request):
    """Jobs to queue: all of them, or none.

    Attributes:
        specs: resolved specs, with a section `queue`; paths are absolute.
        key: idempotency key of the client: the same key and specs give the same jobs.
        client: client of an embedded server, whose end cancels these jobs; None: the jobs outlive their submitter.
    """

    specs: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=MOST_JOBS)
    key: str | None = Field(None, min_length=1, max_length=LONGEST_KEY)
    client: str | None = Field(None, min_length=1, max_length=200)


class JobView(Response):
    """A job, as shown to all who may see it.

    Attributes:
        placement: (node id, workers) for each node of its lease; empty: it holds none.
        on: the placement with names of nodes for people.
        num_workers: current or last number of workers; for a waiting job, the least that it starts with.
        sizes: numbers of workers that the job can have, ascending; empty: it is not elastic.
        heard_s: when its driver was last heard.
        run: root of its run; None for a command.
        metrics: last known metrics, by name.
        changed: grows with each change of the job; see `GET /v1/changes`.
        waiting_since_s: since when a QUEUED job has waited, or was paused or resumed.
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
    wanted: DesiredState
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
        """Make a view of a job. Except for two times, fields are copied from fields of the job or its gang."""
        values = dict(zip(_OF_JOB, _values(job), strict=True))
        values["waited_s"] += waits_s(job, now_s)
        if job.state is not State.QUEUED:
            del values["waiting_since_s"]
        return cls(**values)


_IN_GANG = JobView.model_fields.keys() & {one.name for one in fields(Gang)}
_OF_JOB = tuple(_IN_GANG | (JobView.model_fields.keys() & {one.name for one in fields(Job)}))
_values = attrgetter(*(f"gang.{name}" if name in _IN_GANG else name for name in _OF_JOB))


def exit_code_of(state: State, reason: Reason) -> int | None:
    """Return the exit code of a program that has waited for a job; None: the job has not ended."""
    if state is State.FAILED and reason is Reason.BAD_INPUT:
        return 2
    return {State.SUCCEEDED: 0, State.FAILED: 1, State.CANCELLED: 130}.get(state)


class JobPage(Response):
    """A page of jobs, newest first. `next`: the value of `before` for the next page; None: this is the last page.

    If `after` was given, the oldest are first, and `next` is the value of `after` for the next page.

    `set_aside`: jobs that the server cannot read (which are on no page) or cannot plan, each with the reason.

    `unanswered`: why the machines do not answer; empty: they do, or this server has not asked them.
    """

    jobs: tuple[JobView, ...]
    next: int | None
    set_aside: tuple[str, ...] = ()
    unanswered: str = ""


class Changes(Response):
    """Jobs that have changed, in order of their changes. `last`: the value of `after` for the next request."""

    jobs: tuple[JobView, ...]
    last: int


class Counts(Response):
    states: Mapping[State, int]


class Priority(Request):
    priority: int = Field(ge=-MOST_PRIORITY, le=MOST_PRIORITY)


class EventView(Response):
    """An event. `message`: for people. `data`: the same for programs; empty if the server is older than this field."""

    number: int
    at_s: float
    kind: str
    message: str
    job_id: str | None
    data: Mapping[str, Any] = Field(default_factory=dict)


class Events(Response):
    """Events, oldest first. `last`: the value of `after` for the next request.

    Numbers may be missing in between, because events that the caller may not see are left out. If `before` was given,
    the newest are first, and `last` is the value of `before` for the next request; 0: there are no more.
    """

    events: tuple[EventView, ...]
    last: int = 0


class WhyView(Response):
    """Why a job is in its state. Starts are seconds since 1970; None: unknown.

    Attributes:
        text: the whole explanation, for people.
        is_guess: no known run times support the expected start.
        reason: one line; empty if the server is older than this field.
        expected: the expected start as text, and how sure it is; empty: unknown.
        next_step: what the user can do; empty: nothing is needed.
    """

    text: str
    expected_start_s: float | None
    earliest_start_s: float | None
    latest_start_s: float | None
    is_guess: bool = False
    reason: str = ""
    expected: str = ""
    next_step: str = ""


class LogSources(Response):
    """Names of logs. `output`: the terminal output of the newest attempt; `driver`, `rank-0`, ...: logs of the run.

    `failed`: the log of the rank that made the job fail; null: unknown, or the job has not failed.
    """

    sources: tuple[str, ...]
    failed: str | None = None


class LogPart(Response):
    """A part of a log from a byte on, cut at the end of a line if possible.

    Attributes:
        next: the byte to continue with.
        ended: nothing more will come.
        begin: the byte at which the text begins; None: the server is older and cannot read a log from its end.
    """

    text: str
    next: int
    ended: bool
    begin: int | None = None


class MetricsPart(Response):
    """Records of a run's metrics, in order of steps. `next`: the value of `after` for the next request."""

    records: tuple[dict[str, Any], ...]
    next: int


class NodeView(Response):
    """A node. `name`: for people. `order`: use, cordon or drain; a drain stops all jobs at `deadline_s`."""

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


class Nodes(Response):
    """`growth`: a text on what an autoscaler may add; '': there is no autoscaler."""

    nodes: tuple[NodeView, ...]
    growth: str = ""


MOST_DEADLINE_S: Final = 366 * 86400.0


class NodeOrderSent(Request):
    """`deadline_s`: of a drain, in seconds from now; after that, non-preemptible jobs are stopped too."""

    order: NodeOrder
    reason: str = Field("", max_length=500)
    deadline_s: float | None = Field(None, ge=0.0, le=MOST_DEADLINE_S)


class QuotaSent(Request):
    """GPUs of one type; None: of all types together."""

    accelerator_type: str | None = Field(None, min_length=1, max_length=100)
    gpus: int = Field(ge=0, le=1_000_000)


class RestrictionsSent(Request):
    """All limits of a tenant's jobs; see `orchestrator.queue.tenants`. None: no limit."""

    max_priority: int = Field(MEMBERS_MAX_PRIORITY, ge=-MOST_PRIORITY, le=MOST_PRIORITY)
    max_queued_jobs: int | None = Field(None, ge=0, le=1_000_000_000)
    max_runtime_s: float | None = Field(None, gt=0.0, le=1e10)
    max_gpu_hours_per_month: float | None = Field(None, ge=0.0, le=1e12)
    roots: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] | None = Field(None, max_length=100)
    secrets: tuple[Annotated[str, Field(pattern=VARIABLE)], ...] = Field((), max_length=1000)


class TenantSent(Request):
    """All settings of a tenant. Without `restrictions`, these are unchanged."""

    weight: float = Field(1.0, gt=0.0, le=1_000_000.0)
    guaranteed: tuple[QuotaSent, ...] = Field((), max_length=100)
    limit: tuple[QuotaSent, ...] = Field((), max_length=100)
    restrictions: RestrictionsSent | None = None


class QuotaView(Response):
    accelerator_type: str | None
    gpus: int


class TenantView(Response):
    name: str
    weight: float
    guaranteed: tuple[QuotaView, ...]
    limit: tuple[QuotaView, ...]
    running: int
    queued: int
    gpus: int = Field(description="Held now.")
    restrictions: Restrictions = DEFAULT_RESTRICTIONS
    gpu_hours: float | None = Field(None, description="Of this month (UTC), where the tenant has a limit of them.")
    version: str | None = Field(None, description="Changes with each of the settings; see `PUT /v1/tenants/{tenant}`.")


class Tenants(Response):
    tenants: tuple[TenantView, ...]


class UsageRow(Response):
    """What a tenant has held in one month (UTC), for example `2026-11`."""

    month: str
    tenant: str
    gpu_hours: float
    cpu_hours: float = Field(description="Of gangs without GPUs.")
    jobs: int = Field(description="That have held a lease in it.")


class Usage(Response):
    rows: tuple[UsageRow, ...]


class TokenSent(Request):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")
    role: Role
    tenant: str | None = Field(None, min_length=1, max_length=100)
    lifetime_s: float | None = Field(None, gt=0.0, le=1e10, description="After that it is refused; null: never.")


class TokenView(Response):
    name: str
    role: str
    tenant: str | None
    created_s: float
    revoked_s: float | None
    expires_s: float | None = None


class Tokens(Response):
    tokens: tuple[TokenView, ...]


class NewToken(Response):
    """A new token, which is shown only here."""

    name: str
    token: str


class Me(Response):
    """The owner of the token. On a server without tokens, every caller is an admin."""

    name: str
    role: str
    tenant: str | None
    tokens_needed: bool


class Server(Response):
    """`machine`: the machine that the server runs on, so that a client can tell whether it is on the same one."""

    version: str
    api: str
    leads: bool
    leader_url: str | None
    engine: Engine
    machine: str
    shared: tuple[str, ...] = Field(description="Folders that all machines see.")
    retention_days: float | None = Field(None, description="How long after their end jobs are kept; null: for ever.")
