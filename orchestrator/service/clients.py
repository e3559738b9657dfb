"""Clients whose jobs end with them: scripts that use an embedded server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from orchestrator.queue.errors import JobEnded, QueueError
from orchestrator.queue.states import Wanted
from orchestrator.queue.store import Change
from orchestrator.service.surroundings import Surroundings

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_BY = "the end of its client"
_NEW_S = 3600.0


def check_client(client: str) -> None:
    """Raises QueueError: it cannot be the name of a file."""
    if not _NAME.fullmatch(client):
        raise QueueError("client: a client's name has letters, digits, '_' and '-', at most 100 of them")


def cancel_what_the_gone_left(surroundings: Surroundings, home: Path) -> int:
    """Called by the leader after each pass; how many jobs were asked to end.

    A client lives for as long as it holds the lock (flock) of `HOME/clients/ID.lock`; the kernel lets go of it when
    the process is gone. A file that is not there means that it is gone too.

    Args:
        home: FLEETUNE_HOME.

    Raises:
        StoreBroken: nothing is lost; the next call goes on.
    """
    jobs = [job for job in surroundings.store.of_clients() if job.wanted is not Wanted.CANCEL]
    lives = {client: is_alive(home, client) for client in {job.client for job in jobs if job.client is not None}}
    asked = 0
    for job in jobs:
        if job.client is not None and not lives[job.client]:
            try:
                surroundings.store.ask(job.job_id, Change(wanted=Wanted.CANCEL), surroundings.clock.now_s(), _BY)
            except JobEnded:
                continue
            asked += 1
    return asked


def forget_the_gone(surroundings: Surroundings, home: Path) -> None:
    """Remove the files of clients that are gone and have left nothing. Raises StoreBroken."""
    needed = {job.client for job in surroundings.store.of_clients()}
    for path in sorted((home / "clients").glob("*.lock")):
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > _NEW_S  # one that is new may be about to be locked
            if old and path.stem not in needed and not is_alive(home, path.stem):
                path.unlink()


def is_alive(home: Path, client: str) -> bool:
    """Whether a process holds the client's lock. Where nobody can say, it lives."""
    if not _NAME.fullmatch(client):
        return True
    try:
        descriptor = os.open(home / "clients" / f"{client}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
