"""Requests to a run that goes on, as files in its directory. Its workers look for them every second."""

from __future__ import annotations

from cluster.text import duration, many
from jobs.errors import InputError
from jobs.run.paths import JobPaths
from jobs.run.record import resume_command
from jobs.run.summary import Now, RunSummary, summarise, utc_now
from jobs.storage import files as storage


def ask_to_stop(root: str, now: Now = utc_now) -> str:
    """Ask a run to save a checkpoint and end. Returns a message about what will happen.

    Raises:
        InputError: the run has ended.
    """
    paths = JobPaths(root)
    will = _ask(paths, paths.stop_request, "end as interrupted", now)
    return f"{will}; go on later with: {resume_command(paths)}"


def ask_to_save(root: str, now: Now = utc_now) -> str:
    """Ask a run to save a checkpoint and go on. As `ask_to_stop`."""
    paths = JobPaths(root)
    return _ask(paths, paths.save_request, "go on", now)


def _ask(paths: JobPaths, request: str, then: str, now: Now) -> str:
    """Write the request. Returns a message, with a warning if the run may be dead. Raises InputError."""
    run = summarise(paths, now)
    if run.status not in ("running", "lost"):
        raise InputError(_has_ended(run))
    storage.write_bytes(request, b"fleetune")
    silent = f", if it is alive: it has been silent for {duration(run.silent_s or 0.0)}" if run.status == "lost" else ""
    return f"run {paths.name} will save a checkpoint at its next step, and {then}{silent}"


def _has_ended(run: RunSummary) -> str:
    if run.status == "unreadable":
        return f"run {run.name}: {run.reason}"
    return f"run {run.name} has ended: {run.status} after {many(run.step, 'step')}. It can no longer be asked"
