"""The schedule of a simulation as a CSV file: where and when each job ran."""

from __future__ import annotations

from jobs.storage import files as storage
from orchestrator.simulate.values import Simulated, SimulatedAttempt

HEAD = "job,start_s,end_s,placement"


def schedule_csv(simulated: Simulated) -> str:
    """Format the schedule, one line for each attempt, sorted by job and start.

    `job` is the row of the trace, counted from 0. Times are seconds as in the trace, with all digits, so that the
    attempts of a job add up to its duration and the cost of interruptions. `placement` is node:GPUs, joined by
    semicolons.
    """
    ordered = sorted(simulated.attempts, key=lambda attempt: (attempt.job, attempt.start_s))
    return "\n".join([HEAD, *map(_line, ordered), ""])


def write_schedule(path: str, simulated: Simulated) -> None:
    """Write the schedule to a path or URL, atomically. Raises StorageError."""
    storage.write_bytes(path, schedule_csv(simulated).encode())


def _line(attempt: SimulatedAttempt) -> str:
    placement = ";".join(f"{node}:{gpus}" for node, gpus in attempt.placement)
    return f"{attempt.job},{float(attempt.start_s)!r},{float(attempt.end_s)!r},{placement}"
