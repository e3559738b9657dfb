"""The embedded server: started if no server runs on this machine, and shared by all scripts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cluster.errors import FleetuneError
from cluster.local.locks import try_lock
from cluster.python_module import module_command
from orchestrator.client.discovery import LocalServer, answers, local_server
from orchestrator.queue.names import CLIENTS, client_lock

READY_S: Final = 120.0
POLL_S: Final = 0.1
OTHERS_S: Final = 5.0  # seconds from the end of our server until the URL of a faster one must be there
TAIL_BYTES: Final = 3000


class NotStarted(FleetuneError):
    """The embedded server did not start."""


class MachineServer:
    """Finds the server of this machine for one client."""

    def __init__(self, home: Path, ready_s: float = READY_S) -> None:
        self._home, self._ready_s = home, ready_s
        self._used: LocalServer | None = None

    def url(self) -> str:
        """Return the URL of the server, which is started if there is none.

        Scripts that start at the same time take turns. A server that is started by hand meanwhile is found, too: a
        server locks the store, and only the holder of the lock records its URL.

        If the server that this client has used was started by hand and has ended, none is started: it would lock the
        store against the one that is about to be started by hand again, and would not use the machines of its jobs.

        Raises:
            NotStarted: the server did not start; the message has the end of its log.
        """
        until_s = time.monotonic() + self._ready_s
        _make(self._home)
        if self._used is not None and not self._used.embedded:
            self._used = _living(self._home) or self._used
            return self._used.url
        with _alone(self._home / "embedded.lock", until_s):
            self._used = _living(self._home) or _started(self._home, until_s)
        return self._used.url


def _living(home: Path, path: str = "/healthz") -> LocalServer | None:
    """Return this machine's server if it answers at a path."""
    found = local_server(home)
    return found if found is not None and answers(found.url, path) else None


def _started(home: Path, until_s: float) -> LocalServer:
    log = home / "serve.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        begin = os.lseek(descriptor, 0, os.SEEK_END)
        child = subprocess.Popen(
            module_command("orchestrator", "serve", "--embedded", "--port", "0"),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,  # Ctrl-C in the script must not reach the server
        )
    finally:
        os.close(descriptor)
    while True:
        if (found := _living(home, "/readyz")) is not None:
            _let_go(child)
            return found
        if child.poll() is not None:  # another server holds the store, and will soon record its URL
            until_s = min(until_s, time.monotonic() + OTHERS_S)
        if time.monotonic() > until_s:
            code = child.returncode
            what = "is not ready yet" if code is None else f"did not start (exit code {code})"
            _let_go(child)
            raise NotStarted(f"the server of this machine {what}. The end of {log}:\n{_tail(log, begin)}")
        time.sleep(POLL_S)


def _let_go(child: subprocess.Popen[bytes]) -> None:
    """Detach from the child, which outlives this process, without a ResourceWarning."""
    if child.poll() is None:
        child.returncode = 0


def _tail(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").strip() or "(it said nothing)"
    except OSError as error:
        return f"(it cannot be read: {error.strerror})"


@contextlib.contextmanager
def _alone(path: Path, until_s: float) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not try_lock(descriptor):
            if time.monotonic() > until_s:
                raise NotStarted(
                    f"another script has been starting the embedded server for too long ({path} is locked)"
                )
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


class ClientLock:
    """Shows the server that this process lives: a lock on a file in FLEETUNE_HOME/clients, which its end releases.

    The server cancels the jobs of a client whose lock is free, and removes files that killed processes have left.
    Forked children keep the lock as long as they live.
    """

    def __init__(self, home: Path) -> None:
        self.client = f"{os.getpid()}-{secrets.token_hex(8)}"
        _make(home)
        _make(home / CLIENTS)
        self._path = client_lock(home, self.client)
        # A plain descriptor: a file object that is garbage-collected early would release the lock.
        self._descriptor: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def end(self) -> None:
        """Remove the file. For the server, this means the same as a free lock."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _make(folder: Path) -> Path:
    """Create a folder. Raises NotStarted."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise NotStarted(
            f"no server can be started here: {folder} cannot be used ({error.strerror}). Set FLEETUNE_HOME to a folder "
            "that you can write to, or FLEETUNE_URL to a server"
        ) from error
    return folder
