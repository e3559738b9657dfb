"""Asks a run that is still training to stop or to save. Requests are files in its directory, read every second."""

from __future__ import annotations

import shlex
from typing import Final

from cluster.errors import InputError
from cluster.text import duration, many
from jobs.run.find import read_spec_json, sweep_of
from jobs.run.paths import JobPaths
from jobs.run.record import resume_command
from jobs.run.summary import Now, summarise, utc_now
from jobs.spec.checking.fields import SEARCHES
from jobs.storage import files as storage

_CONTENT: Final = b"fleetune"  # of a request
_WITHOUT_STEPS: Final = (
    "While it waits or loads the model, it ends soon, without a checkpoint; while it exports the model, after that."
)


def ask_to_stop(root: str, now: Now = utc_now, is_trial: bool = False) -> str:
    """Ask a run to save a checkpoint and end. Returns a message about what will happen.

    Args:
        is_trial: the run is a trial of a sweep that goes on, so the message names no commands.

    Raises:
        InputError: the run has ended.
    """
    paths = JobPaths(root)
    silent = _ask(paths, paths.stop_request, now)
    will = f"run {paths.name} will save a checkpoint at its next step, and end as interrupted{silent}"
    if is_trial:
        return will
    if (sweep := sweep_of(paths)) is not None:
        stop = f"fleetune stop {shlex.quote(sweep.root)}"
        return f"{will}. It belongs to a sweep: to stop that, {stop}; to resume it later, {resume_command(sweep)}"
    when = _WITHOUT_STEPS
    if _kind(paths) in SEARCHES:
        will = f"{_kind(paths)} {paths.name} will end as interrupted{silent}"
        when = "Trials that are being trained save a checkpoint at their next step."
    return f"{will}. {when} To go on later: {resume_command(paths)}"


def ask_trial_to_end(root: str, trial: int) -> str:
    """Ask for the end of a trial that waits for its next training. Returns a message about what will happen.

    Args:
        root: of the trial.

    Raises:
        InputError: the trial's sweep has ended.
    """
    paths = JobPaths(root)
    if storage.exists(paths.outcome):
        return ask_to_stop(root, is_trial=True)
    storage.write_bytes(paths.stop_request, _CONTENT)
    sweep = sweep_of(paths)
    later = "" if sweep is None or not storage.exists(sweep.outcome) else ", once the sweep is resumed"
    return f"trial {trial} is not being trained: it will be stopped without another step{later}"


def ask_to_save(root: str, now: Now = utc_now) -> str:
    """Ask a run to save a checkpoint and go on. As `ask_to_stop`.

    Raises:
        InputError: the run has ended, or it is a comparison.
    """
    paths = JobPaths(root)
    if _kind(paths) == "compare":
        raise InputError(
            f"{paths.name} is a comparison. Its sweeps save checkpoints: fleetune save {paths.method('NAME')}, with "
            "the name of the method that is trained now"
        )
    silent = _ask(paths, paths.save_request, now)
    return f"run {paths.name} will save a checkpoint at its next step, and go on{silent}"


def _kind(paths: JobPaths) -> str | None:
    """Return the kind that the spec of a run names; None: it names none, or there is no spec."""
    return read_spec_json(paths).get("kind") if storage.exists(paths.spec) else None


def _ask(paths: JobPaths, request: str, now: Now) -> str:
    """Write the request. Returns a doubt whether the run lives, or nothing. Raises InputError."""
    run = summarise(paths, now)
    if run.status == "unreadable":
        raise InputError(f"run {run.name}: {run.reason}")
    if run.status not in ("running", "lost"):
        raise InputError(
            f"run {run.name} has ended: {run.status} after {many(run.step, 'step')}. It can no longer be asked"
        )
    storage.write_bytes(request, _CONTENT)
    return f", if it is alive: it has been silent for {duration(run.silent_s or 0.0)}" if run.status == "lost" else ""
