"""The argument RUN of commands: a run's name or path, or a job of the queue that writes a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.errors import FleetuneError, InputError
from cluster.settings import fleetune_home, server_url
from jobs.run.find import find_run
from jobs.run.paths import comparison_root

if TYPE_CHECKING:
    from orchestrator.api import JobView

ANSWER_S: Final = 5.0  # seconds; short, since most runs are found without the server


def run_meant(given: str, storage_path: str) -> str:
    """Return the root of the run.

    Raises:
        InputError: the argument names neither a run nor a job, or the job's run cannot be read here.
    """
    try:
        return find_run(given, storage_path)
    except InputError:
        job = _job_meant(given)
        if job is None:
            raise
    if job.run is None:
        raise InputError(f"{job.job_id} is a {job.kind} job without a run: fleetune status {job.job_id}")
    try:
        return find_run(job.run, storage_path)
    except InputError as error:
        raise InputError(
            f"{job.job_id} has not written its run at {job.run} yet, or it cannot be read on this machine: "
            f"fleetune status {job.job_id}"
        ) from error


def run_to_stop(given: str, storage_path: str) -> str:
    """Return the root of the run, unless the queue would start it again.

    Raises:
        InputError: as for `run_meant`; or the argument is a job id, or the run is that of an unfinished job.
    """
    try:
        root = find_run(given, storage_path)
    except InputError:
        job = _job_meant(given)
        if job is None:
            raise
    else:
        job = unfinished_job(root)
        if job is None:
            return root
    raise InputError(not_stopped(job))


def not_stopped(job: JobView) -> str:
    """Say why `fleetune stop` does not stop the run of a job, and what to do instead."""
    if job.ended_s is not None:
        return f"{job.job_id} has ended: {job.state}"
    return (
        f"{job.job_id} is a job of the queue, which would start it again. fleetune pause {job.job_id} saves a "
        f"checkpoint and frees its GPUs; fleetune cancel {job.job_id} ends it"
    )


def check_not_queued(root: str) -> None:
    """Raise InputError if a job of the queue writes this run and has not ended: its next attempt may resume it."""
    if job := unfinished_job(root):
        raise InputError(
            f"{root} belongs to job {job.job_id} of the queue, which has not ended. To resume it here, wait until the "
            f"job ends, or cancel it: fleetune cancel {job.job_id}"
        )


def unfinished_job(root: str) -> JobView | None:
    """Return the unfinished job that writes this run or the comparison that it is part of; None: there is none."""
    for one in filter(None, (root.rstrip("/"), comparison_root(root))):
        job = _job_meant(one.rpartition("/")[2])
        if job is not None and job.run == one and job.ended_s is None:
            return job
    return None


def _job_meant(given: str) -> JobView | None:
    """Return the job with this id or run; None: there is no server or no such job."""
    from orchestrator.client.discovery import connected, local_server
    from orchestrator.client.lookup import find_job

    if server_url() is None and local_server(fleetune_home()) is None:
        return None
    try:
        with connected(patience_s=0.0, answer_s=ANSWER_S) as connection:
            return find_job(connection, given)
    except FleetuneError:
        return None
