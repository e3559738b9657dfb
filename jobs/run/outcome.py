"""The values that a run leaves for its viewers: its outcome and its events."""

from __future__ import annotations

import datetime
import json
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field

from cluster.errors import MachinesFailed, StorageError
from jobs.frozen import Shown
from jobs.run.paths import JobPaths
from jobs.run.remedies import Remedy, Trouble
from jobs.run.run_plan import PlanCheck
from jobs.storage import files as storage

OUTCOME_VERSION = 1


class Status(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Outcome(Shown):
    """The end of one run, written once as outcome.json."""

    # A run may end because its loss is NaN or infinite, and the outcome must be able to record that.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    version: int = OUTCOME_VERSION
    status: Status = Field(description="How the run ended.")
    reason: str | None = Field(None, description="Why it ended so, in one readable message; None if it succeeded.")
    bad_input: bool = Field(False, description="The same spec and data would fail again (exit code 2).")
    diverged: bool = Field(False, description="The training diverged: a resume would compute the same.")
    is_final: bool = Field(False, description="A search has tried all that it may try: a resume would do nothing.")
    lost: bool = Field(False, description="The machines failed: the run may succeed on others (exit code 75).")
    out_of_memory: bool = Field(False, description="A process needed more memory than there was.")
    faulty_nodes: tuple[str, ...] = Field((), description="Nodes whose hardware failed, as Ray identifies them.")
    rank: int | None = Field(None, ge=0, description="The rank that failed; None: no single one, or it is not known.")
    step: int = Field(0, ge=0, description="Last optimizer step that was finished.")
    metrics: dict[str, float] = Field(
        default_factory=dict, description="Last train loss, and the last eval_* that were measured after a step."
    )
    evaluated_step: int | None = Field(
        None, ge=1, description="The step after which eval_* of metrics were measured; None if there are none."
    )
    metrics_before: dict[str, float] = Field(default_factory=dict, description="eval_* before the first step.")
    exported_step: int | None = Field(
        None, ge=1, description="Step of the checkpoint that was exported, if it is not the last step."
    )
    exported_metrics: dict[str, float] = Field(default_factory=dict, description="eval_* after that step.")
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None,
        description="Held-out samples by class, after exported_step or else evaluated_step: a row for each true class, "
        "a column for each predicted.",
    )
    model_path: str | None = Field(None, description="The exported model directory.")
    remedies: tuple[Remedy, ...] = Field((), description="Changes of the spec for lack of memory, over all attempts.")
    troubles: tuple[Trouble, ...] = Field((), description="What went wrong, and what the run did, over all attempts.")
    plan: PlanCheck | None = Field(None, description="What was predicted and what was measured; None: not planned.")
    ended_at: datetime.datetime = Field(description="UTC.")

    @property
    def resume_is_useless(self) -> bool:
        """Whether a resume would diverge again or has nothing to do. Bad input does not count: it can be corrected."""
        return self.diverged or self.is_final

    @property
    def exit_code(self) -> int:
        if self.lost:
            return MachinesFailed.exit_code
        return 2 if self.bad_input else {Status.SUCCEEDED: 0, Status.FAILED: 1, Status.INTERRUPTED: 130}[self.status]


class Event(Shown):
    """One thing that happened in a run."""

    at: datetime.datetime = Field(description="UTC.")
    kind: str = Field(
        description="phase, planned, evaluated, checkpoint, exported, remedy, warning, failed, ended and others."
    )
    message: str = Field(description="One line for people.")
    data: dict[str, Any] = Field(default_factory=dict, description="Facts of the event for programs.")


def event(kind: str, message: str, **data: Any) -> Event:
    return Event(at=datetime.datetime.now(datetime.UTC), kind=kind, message=message, data=data)


def log_is_lost(error: Exception) -> Event:
    """Make the event that the outcome of a run is stored, but its log or last events are not."""
    return event("warning", f"the outcome is stored, but the log or the last events are not: {error}")


def write_outcome(paths: JobPaths, outcome: Outcome) -> None:
    unknown_before = set() if outcome.is_final else {"is_final"}  # to the previous release
    storage.write_bytes(paths.outcome, outcome.model_dump_json(indent=1, exclude=unknown_before).encode())


def read_outcome(paths: JobPaths) -> Outcome | None:
    """Read the outcome of a run; None while it has none.

    Raises:
        StorageError: it cannot be read, it is damaged, or a newer release wrote it.
    """
    if not storage.exists(paths.outcome):
        return None
    return outcome_of(storage.read_bytes(paths.outcome), paths.outcome)


def outcome_of(content: bytes, where: str) -> Outcome:
    """Parse the content of an outcome file; `where` is its path. Raises StorageError."""
    try:
        raw = json.loads(content)
        if isinstance(raw, dict) and int(raw.get("version", 0)) > OUTCOME_VERSION:
            raise StorageError(f"{where} was written by a newer release: upgrade Fleetune to read it")
        return Outcome.model_validate(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise StorageError(
            f"{where} is not the outcome of a run: remove the file, and the run counts as lost"
        ) from error
