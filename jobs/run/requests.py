"""Asks a run that is still training to stop or to save. Requests are files in its directory, read every second."""

from __future__ import annotations

import shlex

from cluster.errors import InputError
from cluster.text import duration, many
from jobs.run.find import read_spec_json, sweep_of
from jobs.run.paths import JobPaths
from jobs.run.record import resume_command
from jobs.run.summary import Now, summarise, utc_now
from jobs.storage import files as storage


def ask_to_stop(root: str, now: Now = utc_now, is_trial: bool = False) -> str:
    """Ask a run to save a checkpoint and end. Returns a message about what will happen.

    Args:
        is_trial: the run is a trial of a sweep that goes on, so the message names no commands.

    Raises:
        InputError: the run has ended.
    """
    paths = JobPaths(root)
    will = _ask(paths, paths.stop_request, "end as interrupted", now)
    if is_trial:
        return will
    if (sweep := sweep_of(paths)) is not None:
        stop = f"fleetune stop {shlex.quote(sweep.root)}"
        return f"{will}. It belongs to a sweep: to stop that, {stop}; to resume it later, {resume_command(sweep)}"
    return f"{will}; go on later with: {resume_command(paths)}"


def ask_to_save(root: str, now: Now = utc_now) -> str:
    """Ask a run to save a checkpoint and go on. As `ask_to_stop`.

    Raises:
        InputError: the run has ended, or it is a comparison.
    """
    paths = JobPaths(root)
    if storage.exists(paths.spec) and read_spec_json(paths).get("kind") == "compare":
        raise InputError(
            f"{paths.name} is a comparison. Its sweeps save checkpoints: fleetune save {paths.method('NAME')}, with "
            "the name of the method that is trained now"
        )
    return _ask(paths, paths.save_request, "go on", now)


def _ask(paths: JobPaths, request: str, then: str, now: Now) -> str:
    """Write the request. Returns a message, with a warning if the run may be dead. Raises InputError."""
    run = summarise(paths, now)
    if run.status == "unreadable":
        raise InputError(f"run {run.name}: {run.reason}")
    if run.status not in ("running", "lost"):
        raise InputError(
            f"run {run.name} has ended: {run.status} after {many(run.step, 'step')}. It can no longer be asked"
        )
    storage.write_bytes(request, b"fleetune")
    silent = f", if it is alive: it has been silent for {duration(run.silent_s or 0.0)}" if run.status == "lost" else ""
    return f"run {paths.name} will save a checkpoint at its next step, and {then}{silent}"
