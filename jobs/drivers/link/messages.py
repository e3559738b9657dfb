"""What a job's driver and the server say to each other: frozen messages, as JSON over HTTP.

A driver begins with `Register`, and gets back what it is to run. From then on it sends a `Beat` every so often, and is
answered with an order. Whatever a beat says is the newest known, not what has changed: one that is lost costs nothing.

    POST /v1/driver/register   Register -> Registered
    POST /v1/driver/beat       Beat -> Answer

Somebody else's program, which `ray job submit` has started and which finds that the cluster has an orchestrator, is a
guest: it asks to be queued, and looks at what becomes of its job, whose attempts are started like all others. It shows
the token of its user, where the server asks for one.

    POST /v1/guest/join        Join -> Joined
    POST /v1/guest/look        Look -> Looked
    POST /v1/guest/leave       Leave -> Looked

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
SUBMISSION: Final = r"^[A-Za-z0-9._-]{1,200}$"  # of a guest, as it may stand in a URL
MOST_STEPS: Final = 2**53
MOST_METRICS, LONGEST_METRIC = 200, 100  # of one job; characters of a name


class Message(BaseModel):
    """Unknown keys are passed over, so that a newer server may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True)

    version: Literal[1] = WIRE_VERSION


class Order(StrEnum):
    GO_ON = "go-on"
    STOP = "stop"  # save, end, and exit with 130
    LEAVE = "leave"  # the attempt is over, and another one may run: end at once, and write nothing more


class Register(Message):
    """`queue`: id of the queue that has started the driver; '': an older release started it."""

    job_id: str
    queue: str = Field("", max_length=100)
    attempt: int = Field(ge=1)
    host: str = ""
    pid: int = 0


class Registered(Message):
    """What the attempt is to run.

    Attributes:
        kind: of the spec: finetune, command.
        spec: resolved: what it says of other runs (`run:NAME`) is a path or URL by now.
        run: root of the run, which an earlier attempt may have begun; None: the job writes none.
        placement: (node id, workers there), of the lease; in order, ranks follow from it.
        engine: what runs the workers.
        parents: roots of the runs of the jobs that it comes after, by job; those that have none are left out.
        secrets: variables of the environment, by name.
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
    order: Order = Order.GO_ON


class Beat(Message):
    """What the driver knows by now. None: nothing new.

    Attributes:
        run: root of the run that it writes; no other one than it was told.
        saved_step: step of the newest checkpoint.
        remaining_s: running time left, as measured.
        interruption_cost_s: what it would cost to stop now: work since the newest checkpoint, and starting again.
        metrics: newest by name.
        draining: nodes of its placement that Ray is about to take away.
        keeps: node of each worker that it still uses; it has given the others of its placement back, for good.
        faulty: nodes of its placement whose hardware failed, as a GPU with an ECC error.
        last: the driver is about to end, and is answered once all it has said is kept for good.
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
        """What is more than that is passed over: training does not end for it."""
        fitting = [(name, value) for name, value in metrics.items() if len(name) <= LONGEST_METRIC]
        return dict(fitting[:MOST_METRICS])


class Answer(Message):
    """`queue`: id of the queue that answers."""

    order: Order
    reason: str = ""
    queue: str = ""


class Join(Message):
    """A guest asks for its job to be queued. Sent again, it is answered with the same job.

    Attributes:
        key: drawn by the guest: what makes a repetition one.
        queue: of the orchestrator that it has found; '': whichever answers.
        submission: Ray's name of the guest. Its attempts run in the same environment (packages, variables, working
            directory), and with its end the job is cancelled.
        environment: `digest_of_environment` of the guest's own, which shows that it is the one that it names.
        spec: resolved.
        package: the folder that Ray has unpacked for the guest, and unpacks for its attempts on every node.
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
    """
    Attributes:
        queue: see Join.
        attempt, after: of the output that is known by now: which attempt's, and how many bytes of it.
    """

    job_id: str
    queue: str = Field("", max_length=100)
    attempt: int = Field(0, ge=0)
    after: int = Field(0, ge=0)


class Looked(Message):
    """
    Attributes:
        words: how it is with the job, in one line; empty while it trains.
        output: what the attempt that was named has written since, or the next one where that has ended.
        attempt, after: for the next look.
        more: there is more to be had at once.
        exit_code: of a job that has ended; None: it has not.
    """

    words: str = ""
    output: str = ""
    attempt: int = 0
    after: int = 0
    more: bool = False
    exit_code: int | None = None


class Leave(Message):
    """The guest is about to end: its job is not wanted any more."""

    job_id: str
