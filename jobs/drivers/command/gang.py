"""Watches a gang of processes until its end; when one process fails, the others are ended."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from jobs.drivers.command.output import Log
from jobs.drivers.command.places import exit_code_of, how_it_ended
from jobs.drivers.link.link import Say
from jobs.errors import FleetuneError, Interrupted

FAILURE_GRACE_S: Final = 10.0  # from SIGTERM to SIGKILL after another process has failed
STOP_GRACE_S: Final = 30.0  # from SIGTERM to SIGKILL after a request to stop
_KILL_AGAIN_S = 5.0
_POLL_S = 0.2  # seconds between two checks for a request to stop
_READ_S = 1.0  # longest wait of one read for output


class Process(Protocol):
    """One process on any machine (see `Member`). Every method may raise MachinesFailed."""

    def read(self, wait_s: float) -> tuple[bytes, int | None]: ...

    def stop(self, *, hard: bool = False) -> None: ...


def watch_gang(processes: Sequence[Process], log: Log, asked_to_stop: Callable[[], bool], say: Say) -> int:
    """Pass on the output of the processes until all have ended. Returns the driver's exit code.

    Args:
        processes: all processes, by rank; they are running.
        asked_to_stop: called regularly, by this thread.

    Raises:
        MachinesFailed: a process was lost with its machine. The others have ended.
        Interrupted: the processes were asked to stop, and have ended.
    """
    return _Watch(processes, log, asked_to_stop, say).until_the_end()


class _Watch:
    def __init__(self, processes: Sequence[Process], log: Log, asked_to_stop: Callable[[], bool], say: Say) -> None:
        self._processes, self._log, self._say = processes, log, say
        self._asked_to_stop = asked_to_stop
        self._ended: queue.SimpleQueue[tuple[int, int | FleetuneError]] = queue.SimpleQueue()
        self._left = set(range(len(processes)))
        self._kill_at: float | None = None
        self._stopped = False
        self._failure: int | FleetuneError | None = None  # of the first process that failed without being asked to end

    def until_the_end(self) -> int:
        for rank in self._left:
            threading.Thread(target=self._pass_on, args=(rank,), name=f"process-{rank}", daemon=True).start()
        while self._left:
            self._note_an_end()
            if self._left and not self._stopped and self._asked_to_stop():
                self._stopped = True
                self._terminate(STOP_GRACE_S, f"asked to stop: SIGTERM to {_count(self._left)}")
            if self._left and self._kill_at is not None and time.monotonic() > self._kill_at:
                self._say(f"SIGKILL to {_count(self._left)}")
                self._stop_all(hard=True)
                self._kill_at = time.monotonic() + _KILL_AGAIN_S
        if self._stopped and self._failure is None:
            raise Interrupted("stopped on request")
        if isinstance(self._failure, FleetuneError):
            raise self._failure
        return 0 if self._failure is None else exit_code_of(self._failure)

    def _pass_on(self, rank: int) -> None:
        """Pass on the output of one process; runs in a thread for each process."""
        process, lines = self._processes[rank], self._log.of(rank, len(self._processes))
        try:
            code = None
            while code is None:
                output, code = process.read(_READ_S)
                lines(output)
            lines.end()
            self._ended.put((rank, code))
        except FleetuneError as error:
            self._ended.put((rank, error))
        except Exception as error:  # the log cannot be written, and the output would be lost without a message
            self._ended.put((rank, FleetuneError(f"the output of process {rank} is lost: {error}")))

    def _note_an_end(self) -> None:
        try:
            rank, how = self._ended.get(timeout=_POLL_S)
        except queue.Empty:
            return
        self._left.discard(rank)
        if how == 0 or self._failure is not None or self._stopped:
            return
        self._failure = how
        said = str(how) if isinstance(how, FleetuneError) else f"process {rank} {how_it_ended(how)}"
        rest = f"; SIGTERM to {_count(self._left)}" if self._left else ""
        self._terminate(FAILURE_GRACE_S, said + rest)

    def _terminate(self, grace_s: float, why: str) -> None:
        self._say(why)
        self._stop_all(hard=False)
        self._kill_at = time.monotonic() + grace_s

    def _stop_all(self, *, hard: bool) -> None:
        for rank in sorted(self._left):
            try:
                self._processes[rank].stop(hard=hard)
            except FleetuneError:
                continue  # the thread that reads from this process reports the error


def _count(ranks: set[int]) -> str:
    return "the process" if len(ranks) == 1 else f"{len(ranks)} processes"
