"""Clients whose jobs end with them, for example scripts that use an embedded server."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.local.locks import try_lock
from orchestrator.queue.errors import JobEnded, QueueError
from orchestrator.queue.names import CLIENTS, client_lock
from orchestrator.queue.records import Job, ray_submission_of
from orchestrator.queue.states import DesiredState
from orchestrator.queue.store import Change
from orchestrator.service.context.context import ServiceContext

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_BY = "the end of its client"
_BY_RAY_SUBMITTED = "the end of its ray job"
_NEW_S = 3600.0


def check_client(client: str) -> None:
    """Check that the name of a client can be the name of a file. Raises QueueError."""
    if not _NAME.fullmatch(client):
        raise QueueError.at("client", "a client's name has letters, digits, '_' and '-', at most 100 of them")


def cancel_what_the_gone_left(context: ServiceContext, home: Path) -> int:
    """Cancel jobs of clients that are gone. Called by the leader after each pass. Returns the number of jobs.

    A client is alive while it holds the lock (flock) of `HOME/clients/ID.lock`, which the kernel releases when the
    process ends. If the file does not exist, the client is gone, too.

    Args:
        home: FLEETUNE_HOME.

    Raises:
        StoreBroken: nothing is lost; the next call goes on.
    """
    jobs = [
        job
        for job in context.store.of_clients()
        if job.wanted is not DesiredState.CANCEL and ray_submission_of(job) is None
    ]
    lives = {client: is_alive(home, client) for client in {job.client for job in jobs if job.client is not None}}
    return _cancel(context, [job for job in jobs if job.client is not None and not lives[job.client]], _BY)


def cancel_jobs_of_ended_ray_programs(context: ServiceContext) -> int:
    """Cancel jobs of Ray-submitted programs that Ray reports as ended. Returns the number of jobs.

    If Ray does not know a program any more, for example after a restart of the head, its jobs go on.

    Raises:
        StoreBroken, BackendUnreachable: nothing is lost; the next call goes on.
    """
    jobs = [job for job in context.store.of_clients() if job.wanted is not DesiredState.CANCEL]
    submissions = {job.job_id: submission for job in jobs if (submission := ray_submission_of(job)) is not None}
    if not submissions:
        return 0
    ended = context.backend.ended_elsewhere(sorted(set(submissions.values())))
    return _cancel(context, [job for job in jobs if submissions.get(job.job_id) in ended], _BY_RAY_SUBMITTED)


def _cancel(context: ServiceContext, jobs: Sequence[Job], by: str) -> int:
    asked = 0
    for job in jobs:
        with contextlib.suppress(JobEnded):
            context.store.ask(job.job_id, Change(wanted=DesiredState.CANCEL), context.clock.now_s(), by)
            asked += 1
    return asked


def forget_the_gone(context: ServiceContext, home: Path) -> None:
    """Remove the lock files of clients that are gone and have no jobs left. Raises StoreBroken."""
    needed = {job.client for job in context.store.of_clients()}
    for path in sorted(_locks(home)):
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > _NEW_S  # a new file may be about to be locked
            if old and path.stem not in needed and not is_alive(home, path.stem):
                path.unlink()


def _locks(home: Path) -> Iterator[Path]:
    return (home / CLIENTS).glob(client_lock(home, "*").name)


def any_alive(home: Path) -> bool:
    return any(is_alive(home, path.stem) for path in _locks(home))


def is_alive(home: Path, client: str) -> bool:
    """Whether a process holds the client's lock. If this cannot be determined, the client counts as alive."""
    if not _NAME.fullmatch(client):
        return True
    try:
        descriptor = os.open(client_lock(home, client), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
