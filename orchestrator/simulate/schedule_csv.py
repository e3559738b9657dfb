"""Writes down where and when every job of a simulation ran, as a CSV file."""

from __future__ import annotations

from jobs.storage import files as storage
from orchestrator.simulate.values import Simulated, Stretch

HEAD = "job,start_s,end_s,placement"


def schedule_csv(simulated: Simulated) -> str:
    """A line for each stretch, by job and then by start.

    `job` is the 0-based row of the trace; times are seconds on the trace's clock with all their digits, so that a job's
    stretches add up to its duration and what interruptions added; `placement` is node:GPUs, joined by semicolons.
    """
    ordered = sorted(simulated.stretches, key=lambda stretch: (stretch.job, stretch.start_s))
    return "\n".join([HEAD, *map(_line, ordered), ""])


def write_schedule(path: str, simulated: Simulated) -> None:
    """Write it to a path or URL, whole or not at all. Raises StorageError."""
    storage.write_bytes(path, schedule_csv(simulated).encode())


def _line(stretch: Stretch) -> str:
    placement = ";".join(f"{node}:{gpus}" for node, gpus in stretch.placement)
    return f"{stretch.job},{float(stretch.start_s)!r},{float(stretch.end_s)!r},{placement}"
