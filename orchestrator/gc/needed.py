"""Finds the runs that the queue needs: runs of unfinished jobs, of their parents, and of the models they start from."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import RootModel

from cluster.errors import FleetuneError
from jobs.spec.references import run_named
from orchestrator.api import JobView, Me
from orchestrator.client.connection import Connection
from orchestrator.client.discovery import USUAL_URL, connected, recorded_url
from orchestrator.client.lookup import all_jobs, job_path
from orchestrator.gc.scan import model_path, run_named_by
from orchestrator.gc.values import Held
from orchestrator.queue.states import UNFINISHED

PATIENCE_S: Final = 10.0

_READERS = 8
_CONNECTS_S = 5.0
_NOTHING: Final[Mapping[str, str]] = {}
_OTHERWISE = "Unfinished jobs may need runs that have ended. If you know that they do not, give --no-server"


class QueueUnreachable(FleetuneError):
    """The queue's server cannot tell which runs its jobs need."""


class _AnySpec(RootModel[dict[str, Any]]):
    pass


def url_to_ask() -> str | None:
    """Return the URL of the server that FLEETUNE_URL or FLEETUNE_HOME names, or of one at the usual address.

    None: none of them names a server, and nothing listens at the usual address.
    """
    return recorded_url() or (USUAL_URL if _listens(USUAL_URL) else None)


def _listens(url: str) -> bool:
    """Whether a program listens at a URL. A frozen one does, too."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), _CONNECTS_S).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


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
            return held_by(jobs, _models(server, jobs), runs, _runs_of_parents(server, jobs))
    except QueueUnreachable:
        raise
    except FleetuneError as error:
        raise QueueUnreachable(f"{error}. {_OTHERWISE}") from error


def held_by(
    jobs: Collection[JobView], models: Mapping[str, str], runs: Collection[str], parents: Mapping[str, str] = _NOTHING
) -> Held:
    """Return the runs that unfinished jobs need.

    A command may read everything in the runs of its parents. Other jobs read no checkpoints of other runs.

    Args:
        models: path of each job's base model, by job id.
        parents: root of each parent's run, by job id.
    """
    wholly, starts = dict[str, str](), dict[str, str]()
    for job in jobs:
        reads = wholly if job.kind == "command" else starts
        for parent in job.after:
            if run := run_named_by(parents.get(parent, ""), runs):
                reads[run] = f"job {job.job_id} comes after it"
    starts |= {run: f"job {job} starts from it" for job, path in models.items() if (run := run_named_by(path, runs))}
    wholly |= {run: f"job {job.job_id} has not ended" for job in jobs if (run := run_named_by(job.run or "", runs))}
    return Held(wholly, starts)


def _runs_of_parents(server: Connection, jobs: Collection[JobView]) -> dict[str, str]:
    known = {job.job_id: job.run or "" for job in jobs}
    others = {parent for job in jobs for parent in job.after} - known.keys()
    with ThreadPoolExecutor(_READERS) as pool:
        return known | dict(zip(others, pool.map(partial(_run, server), others), strict=True))


def _run(server: Connection, job_id: str) -> str:
    return server.get(job_path(job_id), JobView).run or ""


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
    return _run(server, parent)
