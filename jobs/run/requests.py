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
    heard = _warning_if_silent(paths, now)
    storage.write_bytes(paths.stop_request, b"fleetune stop")
    return (
        f"run {paths.name} will save a checkpoint at its next step, and end as interrupted{heard}; "
        f"go on later with: {resume_command(paths)}"
    )


def ask_to_save(root: str, now: Now = utc_now) -> str:
    """Ask a run to save a checkpoint and go on. Returns a message about what will happen.

    Raises:
        InputError: the run has ended.
    """
    paths = JobPaths(root)
    heard = _warning_if_silent(paths, now)
    storage.write_bytes(paths.save_request, b"fleetune save")
    return f"run {paths.name} will save a checkpoint at its next step, and go on{heard}"


def _warning_if_silent(paths: JobPaths, now: Now) -> str:
    """Return '', or a warning that the run may be dead. Raises InputError if the run has ended."""
    run = summarise(paths, now)
    if run.status not in ("running", "lost"):
        raise InputError(_has_ended(run))
    return f", if it is alive: it has been silent for {duration(run.silent_s or 0.0)}" if run.status == "lost" else ""


def _has_ended(run: RunSummary) -> str:
    if run.status == "unreadable":
        return f"run {run.name}: {run.reason}"
    return f"run {run.name} has ended: {run.status} after {many(run.step, 'step')}. It can no longer be asked"
