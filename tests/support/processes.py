"""Looking at the processes of this machine from a test, and waiting for something to come true."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

POLL_S = 0.05
# A look at all processes takes 20 ms of a core, which what is waited for needs as well: a longer rest follows it.
RESTS, LONGEST_REST_S = 5, 0.5  # times of a look
MOST_COUNTED_S = 5.0
# Neither the kernel for connections (from 32768 on) nor Ray for its workers (up to 19999) takes these ports.
PORTS = range(20_000, 32_000)
_SHARES = 4  # of processes of pytest
_returned = set[int]()


def processes_with(*variables: str) -> list[int]:
    """Processes that have one of NAME=VALUE in the environment they were started with."""
    found, wanted = [], {variable.encode() for variable in variables}
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if not wanted.isdisjoint(path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


def processes_below(folder: pathlib.Path) -> list[int]:
    """Processes that have a file in the folder open. `processes_with` may miss one that has changed its title."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if any(os.readlink(handle).startswith(f"{folder}/") for handle in path.iterdir()):
                found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> bytes:
    """Its words, each ended by a zero; none if it has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent_of(pid: int) -> int:
    """0: it has ended."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def originals(pids: Iterable[int]) -> list[int]:
    """Without what another of them has forked: that has its name and variables until it runs a program of its own."""
    found = set(pids)
    return sorted(pid for pid in found if parent_of(pid) not in {0, *found})


def process_lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    return _state_of(pid) not in (b"", b"Z", b"X")


def process_is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it."""
    return _state_of(pid) == b"T"


def _state_of(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return b""


def pause() -> None:
    time.sleep(POLL_S)


def wait_for(
    true: Callable[[], object], what: str, within_s: float = 60.0, between: Callable[[], None] = pause
) -> None:
    """Returns once it is true. `between`: done between two looks, where waiting alone would not help.

    A look and the wait before it count for a few seconds at most: if the whole machine stood still, nothing had time.
    """
    waited_s, looked_at = 0.0, time.monotonic()
    while True:
        begun_at = time.monotonic()
        if true():
            return
        before, looked_at = looked_at, time.monotonic()
        waited_s += min(looked_at - before, MOST_COUNTED_S)
        assert waited_s < within_s, f"after {within_s} s it is still not true that {what}"
        between()
        rests_s = min(RESTS * (looked_at - begun_at), LONGEST_REST_S)
        time.sleep(max(0.0, rests_s - (time.monotonic() - looked_at)))


def start_until(
    is_up: Callable[[], object],
    start: Callable[[], subprocess.Popen[Any]],
    what: str,
    within_s: float,
    between: Callable[[], None] = pause,
) -> None:
    """Start a program, and again if it ends before it is up: on a busy machine Ray's own time-outs may be too short."""
    process = start()

    def looked() -> object:
        nonlocal process
        if process.poll() is not None:
            process = start()
        return is_up()

    wait_for(looked, what, within_s, between)


def free_port() -> int:
    """Return a port that is free, and that nothing takes by chance before it is used, or used again.

    None is returned twice, and those of another process of pytest are left to it.
    """
    chance, worker = random.SystemRandom(), int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = chance.choice(PORTS[worker % _SHARES :: _SHARES])
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            if port not in _returned:
                _returned.add(port)
                return port


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port at which nobody answers. A server may take it meanwhile, and nothing else does."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", free_port()))
        yield int(holder.getsockname()[1])


class Talker:
    """A program that goes on, and what it has written so far."""

    def __init__(self, command: Sequence[str], log: pathlib.Path, **options: Any) -> None:
        """`options`: of Popen."""
        self._log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def says(self, text: str, within_s: float = 60.0) -> None:
        with contextlib.suppress(AssertionError):
            wait_for(lambda: text in self.output or self.process.poll() is not None, "", within_s)
        assert text in self.output, f"it did not say {text!r} within {within_s} s; it said:\n{self.output}"

    def ends(self, within_s: float = 60.0) -> int:
        return self.process.wait(within_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
