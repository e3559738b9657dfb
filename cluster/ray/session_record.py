"""The record of the server for a Ray cluster: a file in the session directory of its head, and a copy in Ray's store.

Users of `ray job submit` do not name Fleetune's server. Their driver finds the record, and joins the queue. The record
lives as long as the cluster, even while no server is running: a driver that finds it waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from dataclasses import asdict, dataclass
from typing import Final

from cluster.errors import MachinesFailed, StorageError
from cluster.python_module import module_command
from cluster.ray.raylets import Raylet
from cluster.text import one_line

FILE: Final = "fleetune.json"
_ANSWERS_S = 60.0
_LONGEST = 10_000


@dataclass(frozen=True)
class SessionRecord:
    """The server of a cluster.

    Attributes:
        url: URL at which drivers reach the server.
        queue: id of its queue.
    """

    url: str
    queue: str


def write_record(raylet: Raylet, record: SessionRecord) -> None:
    """Write the record for drivers on this machine. `ask_store` writes the copy for drivers on other nodes.

    Raises:
        StorageError: the session directory cannot be written.
    """
    text, new = json.dumps(asdict(record)), raylet.session / f"{FILE}.{secrets.token_hex(4)}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        new.replace(raylet.session / FILE)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise StorageError(f"{raylet.session} cannot be written to: {error.strerror}") from error


def read_record(raylet: Raylet) -> SessionRecord | None:
    """Read the record; None: the cluster has never had a server.

    Raises:
        MachinesFailed: Ray does not answer.
    """
    found = _read_file(raylet)
    if found is not None or raylet.is_head:
        return found
    return _parsed(ask_store(raylet.gcs))


def ask_store(gcs: str, write: SessionRecord | None = None) -> str:
    """Return the record in Ray's key-value store, after writing `write` if given; '': there is none.

    Raises:
        MachinesFailed: the store does not answer.
    """
    return ask_ray("record", gcs, *([json.dumps(asdict(write))] if write else []))


def ask_ray(what: str, gcs: str, *words: str, given: str = "") -> str:
    """Run `cluster.ray.gcs` in a separate process, and return its output.

    Args:
        gcs: host:port of Ray's global control store.
        given: standard input.

    Raises:
        MachinesFailed: Ray does not answer.
    """
    command = module_command("cluster.ray.gcs", what, gcs, *words)
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_ANSWERS_S)
    except subprocess.TimeoutExpired:
        raise MachinesFailed(f"Ray at {gcs} has not answered for {_ANSWERS_S:.0f} s") from None
    if done.returncode != 0:
        said = one_line(done.stderr.strip().rpartition("\n")[2]) or f"exit code {done.returncode}"
        raise MachinesFailed(f"Ray at {gcs} does not answer: {said}")
    return done.stdout.strip()


def _read_file(raylet: Raylet) -> SessionRecord | None:
    """Read the file if its owner is trusted: every user may write to a session directory."""
    try:
        descriptor = os.open(raylet.session / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            trusted = {0, os.getuid(), raylet.session.stat().st_uid}
            return _parsed(file.read(_LONGEST)) if os.fstat(file.fileno()).st_uid in trusted else None
    except OSError:
        return None


def _parsed(text: str) -> SessionRecord | None:
    try:
        value = json.loads(text) if text else {}
        return SessionRecord(str(value["url"]), str(value["queue"]))
    except (ValueError, KeyError, TypeError):
        return None
