"""Writes the metrics and events of a run, on rank 0."""

from __future__ import annotations

from typing import Any

from jobs.run.outcome import event
from jobs.run.paths import JobPaths
from jobs.storage.journal import JournalWriter, Record

# Written without delay, because the driver must know what the run was doing if a process is killed for memory.
_AT_ONCE = ("phase", "plan", "evaluated")


class Reporter:
    """Writes rank 0's metrics and events; does nothing on other ranks."""

    def __init__(self, paths: JobPaths, rank: int) -> None:
        self._metrics = JournalWriter(paths.metrics, "rank-0") if rank == 0 else None
        self._events = JournalWriter(paths.events, "rank-0") if rank == 0 else None

    def event(self, kind: str, message: str, **data: Any) -> None:
        if self._events is not None:
            self._events.append(event(kind, message, **data).model_dump(mode="json"))
            if kind in _AT_ONCE:
                self._events.hurry()

    def step(self, record: Record) -> None:
        if self._metrics is not None:
            self._metrics.append(record)

    def flush(self) -> None:
        """Write what was reported so far to storage. Raises StorageError."""
        for journal in (self._metrics, self._events):
            if journal is not None:
                journal.flush()

    def close(self) -> None:
        for journal in (self._metrics, self._events):
            if journal is not None:
                journal.close()
