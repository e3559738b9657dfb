"""The section `queue` of every spec: what a job asks of the queue. A run without a queue passes it over."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from jobs.frozen import Frozen

MOST_PRIORITY: Final = 1000
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"

VariableName = Annotated[str, Field(pattern=VARIABLE)]


class OnEnd(Frozen):
    """What is done once a job has ended, whichever way; as a small job of its own."""

    webhook: str | None = Field(
        None, pattern=r"^https?://[^\s]+$", max_length=2000, description="URL to which the end is sent as JSON (POST)."
    )
    command: tuple[str, ...] | None = Field(
        None, min_length=1, description="Program and arguments; FLEETUNE_ENDED_JOB and more are in its environment."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> OnEnd:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("on_end needs either webhook or command")
        return self


class Queue(Frozen):
    """What a job asks of the queue."""

    tenant: str | None = Field(None, min_length=1, description="Whose job it is; left out, the tenant of the token.")
    priority: int = Field(0, ge=-MOST_PRIORITY, le=MOST_PRIORITY, description="Higher ones go first; -1000 to 1000.")
    after: tuple[str, ...] = Field((), max_length=1000, description="Jobs that must have succeeded before.")
    max_runtime_s: float | None = Field(
        None, gt=0.0, description="Most seconds of all attempts together; then it fails."
    )
    preemptible: bool | None = Field(
        None, description="Whether it may be interrupted and go on later; left out: finetune yes, command no."
    )
    secrets: tuple[VariableName, ...] = Field(
        (), description="Variables that the server gives it: NAME is FLEETUNE_SECRET_NAME of the server's environment."
    )
    on_end: OnEnd | None = Field(None, description="What is done once it has ended: a webhook or a command.")


Kind = Literal["finetune", "command"]
