"""Watches a gang of processes until its end, and passes on its output, line by line and without secrets.

When one process fails, the others are ended.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from cluster.errors import FleetuneError, Interrupted, MachinesFailed
from jobs.drivers.command.places import exit_code_of, how_it_ended
from jobs.drivers.link.link import Say

LONGEST_LINE: Final = 8192  # bytes; longer lines are cut into several
SHORTEST_SECRET: Final = 4  # shorter secrets occur in ordinary words and are not masked
_HIDDEN = b"***"
_LINE_END = re.compile(rb"[\r\n]+")
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # and other commands to a terminal
_LETTERS: Final = re.compile(rb"[^\W_]|[\x80-\xff]")
FAILURE_GRACE_S: Final = 10.0  # from SIGTERM to SIGKILL after another process has failed
STOP_GRACE_S: Final = 30.0  # from SIGTERM to SIGKILL after a request to stop
_SHOWN_OF_LAST_LINE: Final = 300  # bytes
_KILL_AGAIN_S = 5.0
_TOLD_WITHIN_S = 5.0  # for all processes together to accept a stop; a node that is cut off answers after minutes
_POLL_S = 0.2  # seconds between two checks for a request to stop
_READ_S = 1.0  # longest wait of one read for output


def masker(secrets: Iterable[str]) -> tuple[Callable[[bytes], bytes], int]:
    """Return a function that replaces secrets by ***, and the length in bytes of the longest secret."""
    parts = {part for secret in secrets for part in (secret, *secret.splitlines())}
    words = sorted((part.encode() for part in parts if len(part) >= SHORTEST_SECRET), key=len, reverse=True)
    if not words:
        return (lambda text: text), 0
    pattern = re.compile(b"|".join(map(re.escape, words)))
    return (lambda text: pattern.sub(_HIDDEN, text)), len(words[0])


class Log:
    """Accepts the output of several processes from several threads, and writes whole lines."""

    def __init__(self, write: Callable[[bytes], object], secrets: Iterable[str]) -> None:
        self._write, self._lock = write, threading.Lock()
        self.mask, longest_secret = masker(secrets)
        self.kept = max(longest_secret - 1, 0)  # bytes held back, because they may be the start of a secret

    def of(self, rank: int, world_size: int) -> LineWriter:
        return LineWriter(self, f"[{rank}] ".encode() if world_size > 1 else b"")

    def put(self, lines: bytes) -> None:
        with self._lock:
            self._write(lines)


class LineWriter:
    """Splits the output of one process into lines. Long lines are cut; a carriage return also ends a line.

    Attributes:
        last: the beginning of the last line with a letter or digit, without secrets, colours and the process's number.
    """

    def __init__(self, log: Log, prefix: bytes) -> None:
        self._log, self._prefix, self._rest = log, prefix, b""
        self.last = b""
        self._in_line = False  # the next piece continues a line that was cut

    def __call__(self, output: bytes) -> None:
        *whole, self._rest = _LINE_END.split(self._rest + output)
        lines = [self._log.mask(line) for line in whole]
        is_cut = len(self._rest) >= LONGEST_LINE + self._log.kept
        if is_cut:
            masked = self._log.mask(self._rest)
            cut = len(masked) - self._log.kept
            lines.append(masked[:cut])
            self._rest = masked[cut:]
        self._put(lines)
        if lines:
            self._in_line = is_cut

    def end(self) -> None:
        """Write what is left after the process has ended, even without a final line end."""
        self._put([self._log.mask(self._rest)] if self._rest else [])
        self._rest = b""

    def _put(self, lines: list[bytes]) -> None:
        for line in lines[self._in_line :]:
            shown = _COLOUR.sub(b"", line[:LONGEST_LINE]).strip()
            self.last = shown[:_SHOWN_OF_LAST_LINE] if _LETTERS.search(shown) else self.last
        pieces = (line[at : at + LONGEST_LINE] for line in lines for at in range(0, len(line), LONGEST_LINE))
        text = b"".join(self._prefix + piece + b"\n" for piece in pieces)
        if text:
            self._log.put(text)


class Process(Protocol):
    """One process on any machine (see `Member`). Every method may raise MachinesFailed."""

    def read(self, wait_s: float) -> tuple[bytes, int | None]: ...

    def stop(self, *, hard: bool = False) -> None: ...


class GangWatch:
    """Watches processes, which are running.

    Args:
        processes: all processes, by rank.
        asked_to_stop: called regularly, by the thread of `until_the_end`.
    """

    def __init__(self, processes: Sequence[Process], log: Log, asked_to_stop: Callable[[], bool], say: Say) -> None:
        self._processes, self._say = processes, say
        self._lines = [log.of(rank, len(processes)) for rank in range(len(processes))]
        self._asked_to_stop = asked_to_stop
        # Not a SimpleQueue: its `get` would wait for ever if the handler of a signal ends after the timeout.
        self._ended: queue.Queue[tuple[int, int | FleetuneError]] = queue.Queue()
        self._left = set(range(len(processes)))
        self._kill_at: float | None = None
        self._stopped = False
        self._telling = set[tuple[int, bool]]()  # ranks that are being told, and whether to kill them
        self._failure: int | FleetuneError | None = None  # of the first process that failed without being asked to end
        self._reason = ""  # of `_failure`

    def until_the_end(self) -> int:
        """Pass on the output of the processes until all have ended. Returns the driver's exit code.

        If a process failed, the last line that is said begins with `failed: `; the queue shows it.

        Raises:
            MachinesFailed: a process was lost with its machine. The others have ended.
            Interrupted: the processes were asked to stop, and have ended.
        """
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
        if self._failure is None:
            return 0
        self._say(f"failed: {self._reason}")
        return exit_code_of(self._failure)

    def _pass_on(self, rank: int) -> None:
        """Pass on the output of one process; runs in a thread for each process."""
        process, lines = self._processes[rank], self._lines[rank]
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
        if isinstance(how, MachinesFailed) and isinstance(self._failure, int) and not self._stopped:
            self._say(str(how))  # its peers often notice before Ray does, and fail first
            self._failure = how
        if how == 0 or self._failure is not None or self._stopped:
            return
        self._failure = how
        self._reason = str(how) if isinstance(how, FleetuneError) else f"process {rank} {how_it_ended(how)}"
        if self._left:
            self._terminate(FAILURE_GRACE_S, f"{self._reason}; SIGTERM to {_count(self._left)}")
        if last := self._lines[rank].last.decode(errors="replace"):
            self._reason += f". The last line of its output: {last}"

    def _terminate(self, grace_s: float, why: str) -> None:
        self._say(why)
        self._stop_all(hard=False)
        self._kill_at = time.monotonic() + grace_s

    def _stop_all(self, *, hard: bool) -> None:
        """Tell all processes at once, because those that cannot be reached take long. They are told only once so."""
        telling = [
            threading.Thread(target=self._stop, args=(rank, hard), name=f"stop-{rank}", daemon=True)
            for rank in sorted(self._left)
            if (rank, hard) not in self._telling
        ]
        self._telling |= {(rank, hard) for rank in self._left}
        for thread in telling:
            thread.start()
        deadline = time.monotonic() + _TOLD_WITHIN_S
        for thread in telling:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _stop(self, rank: int, hard: bool) -> None:
        with contextlib.suppress(FleetuneError):  # the thread that reads from this process reports the error
            self._processes[rank].stop(hard=hard)
        self._telling.discard((rank, hard))


def _count(ranks: set[int]) -> str:
    return "the process" if len(ranks) == 1 else f"{len(ranks)} processes"
