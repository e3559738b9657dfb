"""What a job has written: its output, the logs of its run, its metrics. In parts, no larger than they need be."""

from __future__ import annotations

from orchestrator.api import LogPart, LogSources, MetricsPart
from orchestrator.queue.records import Job
from orchestrator.service.surroundings import Surroundings


def sources(surroundings: Surroundings, job: Job) -> LogSources:
    """`output` of the newest attempt, `output-1` and so on of each, and the logs of its run: `driver`, `rank-0`, ..."""
    raise NotImplementedError


def part(surroundings: Surroundings, job: Job, source: str, after: int) -> LogPart:
    """Up to 256 KiB from a byte on.

    Raises:
        UnknownSource: it has no such log (404).
        StorageError, BackendUnreachable: it cannot be read now.
    """
    raise NotImplementedError


def metrics(surroundings: Surroundings, job: Job, after: int) -> MetricsPart:
    """Records from number `after` on, up to 1,000. A command has none. Raises StorageError."""
    raise NotImplementedError
