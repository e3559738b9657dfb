"""Finds the runs that the queue needs: runs of unfinished jobs, and runs whose models these jobs start from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from pydantic import RootModel

from cluster.errors import FleetuneError
from jobs.spec.references import run_named
from orchestrator.api import JobView, Me
from orchestrator.client.connection import Connection
from orchestrator.client.discovery import connected
from orchestrator.client.lookup import all_jobs, job_path
from orchestrator.gc.scan import model_path, run_named_by
from orchestrator.gc.values import Held
from orchestrator.queue.states import UNFINISHED

PATIENCE_S: Final = 10.0

_READERS = 8
_OTHERWISE = "Unfinished jobs may need runs that have ended. If you know that they do not, give --no-server"


class QueueUnreachable(FleetuneError):
    """The queue's server cannot tell which runs its jobs need."""


class _AnySpec(RootModel[dict[str, Any]]):
    pass


def needed_by_queue(url: str, runs: Collection[str]) -> Held:
    """Return which of these runs the queue's jobs still need.

    Raises:
        QueueUnreachable: the server does not answer, or does not show all jobs.
    """
    try:
        with connected(url, PATIENCE_S) as server:
            me = server.get("/v1/me", Me)
            if me.role != "admin" and me.tenant is not None:
                raise QueueUnreachable(
                    f"the token of {me.name} shows jobs of tenant {me.tenant} only: give an admin's in FLEETUNE_TOKEN. "
                    + _OTHERWISE
                )
            jobs = list(all_jobs(server, state=list(map(str, UNFINISHED))))
            return held_by(jobs, _models(server, jobs), runs)
    except QueueUnreachable:
        raise
    except FleetuneError as error:
        raise QueueUnreachable(f"{error}. {_OTHERWISE}") from error


def held_by(jobs: Collection[JobView], models: Mapping[str, str], runs: Collection[str]) -> Held:
    """Return the runs that unfinished jobs need. `models`: path of each job's base model, by job id."""
    wholly = {run: f"job {job.job_id} has not ended" for job in jobs if (run := run_named_by(job.run or "", runs))}
    starts = {job: run for job, path in models.items() if (run := run_named_by(path, runs))}
    return Held(wholly, {run: f"job {job} starts from it" for job, run in starts.items()})


def _models(server: Connection, jobs: Collection[JobView]) -> dict[str, str]:
    ids = [job.job_id for job in jobs if job.kind != "command"]
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(ids, pool.map(partial(_model, server), ids), strict=True))


def _model(server: Connection, job_id: str) -> str:
    """Return the path of a job's model. If it is the model of another job, return that job's run."""
    path = model_path(server.get(f"{job_path(job_id)}/spec", _AnySpec).root)
    parent = run_named(path)
    if parent is None:
        return path
    return server.get(job_path(parent), JobView).run or ""
