"""The changes that a run made to itself after it ran out of memory, as `remedies.json` keeps them. Light to import.

A later attempt begins with these changes, so that it does not run out of memory again.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field

from cluster.text import many
from jobs.frozen import Frozen
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

REMEDIES_VERSION: Final = 1


class Remedy(Frozen):
    """One change of one field of the spec, and its cost."""

    at: datetime.datetime = Field(description="UTC.")
    cause: str = Field(description="Which process lacked which memory, with the numbers.")
    action: str = Field(description="What was changed.")
    where: str = Field(description="What the run did at that time: loading, training, evaluation or export.")
    rung: str = Field(description="The kind of change.")
    field: str = Field(description="Dotted name of the changed field of the spec.")
    before: Any = Field(description="Its value before.")
    after: Any = Field(description="Its value since then.")
    gpus_per_worker: int = Field(ge=0, description="GPUs of each worker.")
    accelerator_type: str | None = Field(None, description="Type of these GPUs, if the spec names one.")
    from_step: int = Field(ge=0, description="Step of the checkpoint from which the run started again.")
    steps_again: int = Field(ge=0, description="Steps after that checkpoint, which are computed again.")
    seconds: float | None = Field(
        None, ge=0, description="From the failure to the end of the next step; None if there was no next step."
    )


def read_remedies(paths: JobPaths) -> tuple[Remedy, ...]:
    """Read the changes of all attempts, oldest first; () if there are none.

    Raises:
        StorageError: the file cannot be read, or a newer release wrote it.
    """
    raw = storage.read_versioned(paths.remedies, REMEDIES_VERSION)
    return () if raw is None else tuple(Remedy.model_validate(one) for one in raw["remedies"])


def write_remedies(paths: JobPaths, remedies: Sequence[Remedy]) -> None:
    content = {"version": REMEDIES_VERSION, "remedies": [one.model_dump(mode="json") for one in remedies]}
    storage.write_bytes(paths.remedies, json.dumps(content, indent=1).encode())


def format_remedy(remedy: Remedy) -> str:
    """Describe a change in one line: its cause, the change, and its cost."""
    cost = [] if remedy.seconds is None else [f"{remedy.seconds:.0f} s"]
    if remedy.steps_again:
        cost.append(f"{many(remedy.steps_again, 'step')} computed again")
    said = f"out of memory in {remedy.where} ({remedy.cause}): {remedy.action}"
    return said + (f" (cost: {', '.join(cost)})" if cost else "")


def next_time(remedies: Sequence[Remedy]) -> str | None:
    """Return the change of the spec with which a new run avoids these failures; None without remedies."""
    newest = {one.field: one.after for one in remedies}
    if not newest:
        return None
    return f"set {', '.join(f'{name}: {json.dumps(value)}' for name, value in newest.items())} in the spec"
