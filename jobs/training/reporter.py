"""Writes the metrics and events of a run, on rank 0."""

from __future__ import annotations

from typing import Any

from jobs.run.outcome import event
from jobs.run.paths import JobPaths, rank_name
from jobs.storage.journal import JournalWriter, Record

# Written without delay, because the driver must know what the run was doing if a process is killed for memory.
_AT_ONCE = ("phase", "plan", "evaluated")


class Reporter:
    """Writes rank 0's metrics and events; does nothing on other ranks."""

    def __init__(self, paths: JobPaths, rank: int) -> None:
        kinds = {"metrics": paths.metrics, "events": paths.events} if rank == 0 else {}
        self._journals = {kind: JournalWriter(folder, rank_name(0)) for kind, folder in kinds.items()}

    def event(self, kind: str, message: str, **data: Any) -> None:
        if journal := self._journals.get("events"):
            journal.append(event(kind, message, **data).model_dump(mode="json"))
            if kind in _AT_ONCE:
                journal.hurry()

    def step(self, record: Record) -> None:
        if journal := self._journals.get("metrics"):
            journal.append(record)

    def flush(self) -> None:
        """Write what was reported so far to storage. Raises StorageError."""
        for journal in self._journals.values():
            journal.flush()

    def close(self) -> None:
        for journal in self._journals.values():
            journal.close()
