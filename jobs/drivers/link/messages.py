"""The messages between a job's driver and the server: frozen values, sent as JSON over HTTP.

A driver starts with `Register`, and is told what to run. Then it sends a `Beat` at regular intervals, and the answer
holds an instruction. A beat reports all newest values, not changes, so a lost beat does no harm.

    POST /v1/driver/register   Register -> Registered
    POST /v1/driver/beat       Beat -> Answer

A process that `ray job submit` has started, and that finds an orchestrator in the cluster, asks for its job to be
queued and follows the job, whose attempts are started like all others. If the server requires it, this submitted
process sends its user's token. To cancel the job, it uses the route that all clients use.

    POST /v1/guest/join        Join -> Joined
    POST /v1/guest/look        Look -> Looked

The driver sends the token of its attempt (`Authorization: Bearer ...`) and the id of its queue. Statuses: 401, the
token belongs to another attempt; 409, the server keeps another queue; 410, the attempt is over; 422, the message is
invalid or of a newer version. Every answer names the queue that gives it. A driver ignores an answer without the name
of its queue, so that no proxy and no other server can end its attempt.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.ray.runtime_env import RAY_PACKAGE

WIRE_VERSION: Final = 1
SUBMISSION: Final = r"^[A-Za-z0-9._-]{1,200}$"  # submission ids that can be part of a URL
MOST_STEPS: Final = 2**53
MOST_METRICS, LONGEST_METRIC = 200, 100  # metrics of one job; characters of a metric's name


class Message(BaseModel):
    """A message. Unknown keys are ignored, so that a newer release may add fields."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True)

    version: Literal[1] = WIRE_VERSION


class Instruction(StrEnum):
    GO_ON = "go-on"
    STOP = "stop"  # save, end, and exit with 130
    LEAVE = "leave"  # the attempt is over, and another one may be running: end at once, and write nothing more


class Register(Message):
    """A driver's first message. `queue` is the id of the queue that started it; '' if an older release did."""

    job_id: str
    queue: str = Field("", max_length=100)
    attempt: int = Field(ge=1)
    host: str = ""
    pid: int = 0


class Registered(Message):
    """What the attempt is to run.

    Attributes:
        kind: kind of the spec.
        spec: the resolved spec; references to other runs (`run:NAME`) are replaced by paths or URLs.
        run: root of the run, which an earlier attempt may have started; None if the job writes no run.
        placement: (node id, workers there) of the lease; ranks are assigned in this order.
        engine: what runs the workers.
        parents: run roots of the jobs that this job comes after, by job; jobs without a run are left out.
        secrets: environment variables, by name.
        queue: id of the queue that answers.
    """

    queue: str = ""
    kind: str
    spec: dict[str, Any]
    run: str | None = None
    placement: tuple[tuple[str, int], ...]
    engine: Literal["ray", "local"]
    parents: Mapping[str, str] = Field(default_factory=dict)
    secrets: Mapping[str, str] = Field(default_factory=dict)
    beat_every_s: float = Field(10.0, gt=0.0)
    order: Instruction = Instruction.GO_ON


class Beat(Message):
    """A heartbeat: the newest values that the driver knows. None means nothing new.

    Attributes:
        run: root of the run that the driver writes, which must be the one that it was told.
        saved_step: step of the newest checkpoint.
        remaining_s: measured estimate of the running time that is left.
        interruption_cost_s: seconds that a stop now would cost: the work since the newest checkpoint, and a new start.
        metrics: newest values by name.
        draining: nodes of its placement that Ray is about to take away.
        keeps: node of each worker that it still uses; it has given back the rest of its placement for good.
        faulty: nodes of its placement whose hardware failed, or on which ranks hang again and again.
        last: the driver is about to end; the answer comes once everything it has said is stored.
        queue: see Register.
    """

    job_id: str
    queue: str = Field("", max_length=100)
    attempt: int = Field(ge=1)
    run: str | None = None
    step: int | None = Field(None, ge=0, le=MOST_STEPS)
    total_steps: int | None = Field(None, ge=0, le=MOST_STEPS)
    saved_step: int | None = Field(None, ge=0, le=MOST_STEPS)
    remaining_s: float | None = None
    interruption_cost_s: float | None = None
    metrics: Mapping[str, float] = Field(default_factory=dict)
    draining: tuple[str, ...] = Field((), max_length=1000)
    faulty: tuple[str, ...] = Field((), max_length=1000)
    keeps: tuple[str, ...] = Field((), max_length=100_000)
    last: bool = False

    @field_validator("metrics")
    @classmethod
    def _few(cls, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Drop metrics beyond the limits instead of failing, because training must not end for that."""
        fitting = [(name, value) for name, value in metrics.items() if len(name) <= LONGEST_METRIC]
        return dict(fitting[:MOST_METRICS])


class Answer(Message):
    """The answer to a heartbeat. `queue` is the id of the queue that answers."""

    order: Instruction
    reason: str = ""
    queue: str = ""


class Join(Message):
    """A submitted process's request to queue its job. A repetition gets the same job.

    Attributes:
        key: drawn by the process; a message with the same key is a repetition.
        queue: queue of the orchestrator that the process found; '' accepts any.
        submission: Ray's name of the process. The job's attempts run in the same environment (packages, variables,
            working directory), and the job is cancelled when the process ends.
        environment: `digest_of_environment` of the process, which proves that it is the submission that it names.
        spec: the resolved spec.
        package: the directory that Ray has unpacked for the process, and unpacks for the attempts on every node.
    """

    key: str = Field(min_length=1, max_length=100)
    queue: str = Field("", max_length=100)
    submission: str = Field(pattern=SUBMISSION)
    environment: str = Field(pattern=r"^[0-9a-f]{16}$")
    spec: dict[str, Any]
    package: str | None = Field(None, max_length=4000)

    @field_validator("package")
    @classmethod
    def _of_ray(cls, package: str | None) -> str | None:
        if package is None:
            return None
        _, found, name = package.partition(RAY_PACKAGE)
        if posixpath.normpath(package) != package or not package.startswith("/") or not found or "/" in name:
            raise ValueError(f"must be a folder of {RAY_PACKAGE}")
        return package


class Joined(Message):
    job_id: str
    look_every_s: float = Field(5.0, gt=0.0)


class Look(Message):
    """A submitted process's question about its job.

    Attributes:
        queue: see Join.
        attempt, after: the output that the process has: an attempt, and the number of its bytes.
    """

    job_id: str
    queue: str = Field("", max_length=100)
    attempt: int = Field(0, ge=0)
    after: int = Field(0, ge=0)


class Looked(Message):
    """The answer to `Look`.

    Attributes:
        words: the state of the job in one line; empty while it trains.
        output: new output of the attempt that was named, or of the next one if that has ended.
        attempt, after: values for the next question.
        more: more output is available at once.
        exit_code: exit code of a job that has ended; None if it has not.
    """

    words: str = ""
    output: str = ""
    attempt: int = 0
    after: int = 0
    more: bool = False
    exit_code: int | None = None
