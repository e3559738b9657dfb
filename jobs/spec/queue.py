"""The section `queue` of every spec: what a job asks of the queue. A run outside of a queue ignores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from jobs.frozen import Frozen

MOST_PRIORITY: Final = 1000  # bound on both sides of 0
MOST_RUNTIME_S: Final = 1e9  # about 30 years
LONGEST_LABEL: Final = 200
MOST_LABELS: Final = 50
# Fields that get no label: values that may be secrets, fields with their own column in lists, and paths.
_UNLABELLED: Final = frozenset({"env", "queue", "name", "storage_path", "working_dir", "version", "kind"})
MOST_KEYS: Final = 1000  # keys of any mapping in a spec
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"

# Variables that `drivers.command.places` sets for each process of a command; a spec cannot set them.
SET_FOR_PROGRAMS: Final = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES",
)
OWN: Final = "FLEETUNE_"
_OF_FOLLOWERS: Final = ("FLEETUNE_ENDED_", "FLEETUNE_WEBHOOK_")  # set in the specs that the queue makes for `on_end`


def _not_reserved(name: str) -> str:
    if name in SET_FOR_PROGRAMS or (name.startswith(OWN) and not name.startswith(_OF_FOLLOWERS)):
        raise ValueError(
            f"Fleetune sets {name} itself: take another name. Reserved are {', '.join(SET_FOR_PROGRAMS)}, and all "
            f"names that begin with {OWN}"
        )
    return name


VariableName = Annotated[str, Field(pattern=VARIABLE), AfterValidator(_not_reserved)]
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$")]
LabelValue = Annotated[str, Field(max_length=LONGEST_LABEL)]


class OnEnd(Frozen):
    """What happens once a job has ended, successfully or not. It runs as a small job in the queue."""

    webhook: str | None = Field(
        None, pattern=r"^https?://[^\s]+$", max_length=2000, description="URL that gets the outcome as JSON (POST)."
    )
    command: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        fail_fast=True,
        description="Program and arguments; FLEETUNE_ENDED_JOB and others are in its environment.",
    )

    @model_validator(mode="after")
    def _webhook_or_command(self) -> OnEnd:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("on_end needs either webhook or command")
        return self


class Queue(Frozen):
    """What a job asks of the queue."""

    tenant: str | None = Field(None, min_length=1, description="Tenant of the job; default: the tenant of the token.")
    priority: int = Field(0, ge=-MOST_PRIORITY, le=MOST_PRIORITY, description="-1000 to 1000; higher starts earlier.")
    after: tuple[str, ...] = Field(
        (), max_length=1000, fail_fast=True, description="Jobs that must have succeeded before this one starts."
    )
    max_runtime_s: float | None = Field(
        None, gt=0.0, le=MOST_RUNTIME_S, description="Seconds that all attempts together may take; then the job fails."
    )
    preemptible: bool | None = Field(
        None, description="Whether it may be preempted and resumed; default: false for a command, else true."
    )
    secrets: tuple[VariableName, ...] = Field(
        (),
        max_length=100,
        fail_fast=True,
        description="Variables that the server sets for it: NAME has the value of the server's FLEETUNE_SECRET_NAME.",
    )
    on_end: OnEnd | None = Field(None, description="What happens once the job has ended: a webhook or a command.")
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict,
        max_length=MOST_LABELS,
        description="Facts that `queue` and `status` show; --set, --sweep and vary add one for each changed field.",
    )

    def labelled(self, changes: Mapping[str, Any]) -> Queue:
        """Add a label for each changed field; labels that are there already are kept.

        Args:
            changes: new values by dotted name, as `{"train.learning_rate": 1e-5}`.
        """
        added = {name: label_value(value) for name, value in changes.items() if name.split(".")[0] not in _UNLABELLED}
        return self.model_copy(update={"labels": dict(list({**self.labels, **added}.items())[:MOST_LABELS])})


def label_value(value: Any) -> str:
    """Format a value on one line, in at most LONGEST_LABEL characters: `1e-05`, `[a, b]`, `none`."""
    if value is None:
        text = "none"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


Kind = Literal["finetune", "command", "sweep", "compare"]
