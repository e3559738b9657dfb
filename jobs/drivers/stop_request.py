"""The request that a driver stops. Everything that asks for a stop sets it, and the driver acts on it in one place.

Signals from outside set it (Ctrl-C; the queue's backend and Ray send SIGTERM), and also an instruction in the answer to
a heartbeat, nodes that leave, and the file of `fleetune stop`. Light to import.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from types import FrameType
from typing import Any, Final, Literal

from cluster.errors import Interrupted, StorageError
from cluster.local.supervisor import descendants, kill_all, process_lives
from cluster.wakeup import Wakeup
from jobs.run.events import Announcer, repeatedly
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

StopSource = Literal["signal", "heartbeat", "node", "file"]
_REASON: Final = "stopped while no workers were training"
STOPPED_EARLY: Final = "stopped on request before the workers trained a step, so nothing is lost"
STOPPED_AGAIN: Final = "stopped on request before the new workers trained a step; a resume continues from step"
_AGAIN_S: Final = 1.0  # after this time, `Stopped` is raised again unless the main thread is handling one
_LOGGING: Final = str(logging.__file__)
_LOOK_EVERY_S: Final = 1.0  # for the file of `fleetune stop`; each look asks the storage
_AFTER_LOCK_S: Final = 0.01  # until the next try, where the interrupted function may have a lock
# Two signals of the same kind within this many seconds count as one: `timeout` sends its signal to the process and then
# to the process group. A user takes longer to press Ctrl-C again. SIGHUP comes when the terminal is closed.
_SAME_S: Final = {signal.SIGTERM: 1.0, signal.SIGINT: 0.1, signal.SIGHUP: 1.0}


class StopKind(IntEnum):
    """How a driver is to stop. A larger kind replaces a smaller one."""

    AFTER_CHECKPOINT = 1  # save a checkpoint, then end
    AT_ONCE = 2  # end in order, without another checkpoint: the user has asked twice
    LEAVE = 3  # end the process and write nothing more, because another attempt may be running


class Stopped(KeyboardInterrupt):
    """Raised in the main thread. Code that catches every `Exception` lets it pass, because it is not one."""


class StopRequest:
    """The request to stop this driver: its kind, source and reason. A process has one such object.

    A request raises `Stopped` in the main thread while nothing there looks for requests: during imports, the
    preparation of data, and the start of Ray. Where code drops the exception (Cython modules drop any while they are
    imported), it is raised again a second later. With `deferred`, a request is only recorded, because the main thread
    looks.

    Attributes:
        kind: None if the driver was not asked to stop.
        deferred: requests are recorded without an exception.
        wakeup: set with each request. The thread that acts on requests waits for it.
    """

    def __init__(self, *, patient: bool = False) -> None:
        """`patient`: further signals count as the first, because a queue and its machines may both send one."""
        self.kind: StopKind | None = None
        self.source: StopSource | None = None
        self.reason = ""
        self.deferred = False
        self.wakeup = Wakeup()
        self._patient = patient
        self._arrived_s = dict.fromkeys(_SAME_S, -math.inf)  # when the newest signal of each kind has arrived
        self._signalled = False
        self._raised: StopKind | None = None
        self._kept: list[dict[int, Any]] = []  # handlers before each `hold`
        self._timer = (0.0, 0.0)  # ITIMER_REAL as it was before the first `hold`

    @property
    def asked(self) -> bool:
        return self.kind is not None

    @property
    def by_ctrl_c(self) -> bool:
        """Whether the user pressed Ctrl-C in a driver that a second Ctrl-C ends at once."""
        return self.source == "signal" and self.reason == signal.SIGINT.name and not self._patient

    def ask(self, source: StopSource, reason: str, kind: StopKind = StopKind.AFTER_CHECKPOINT) -> None:
        """Request a stop, from any thread. LEAVE ends the process here, because the main thread may be stuck."""
        if kind is StopKind.LEAVE:
            kill_all(lambda: [pid for pid in descendants(os.getpid()) if process_lives(pid)])
            os._exit(Interrupted.exit_code)
        if self.kind is None or kind > self.kind:
            self.source, self.reason, self.kind = source, reason, kind
        self.wakeup.set()
        if any(self._kept) and not self.deferred and threading.current_thread() is not threading.main_thread():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)  # only signals interrupt a wait

    def look_for_file(self, paths: JobPaths) -> None:
        """Request a stop if the file of `fleetune stop` is there. If the storage fails, the next look may find it."""
        with contextlib.suppress(StorageError):
            if not self.asked and storage.exists(paths.stop_request):
                self.ask("file", "fleetune stop")

    @contextlib.contextmanager
    def watching(self, paths: JobPaths) -> Iterator[StopRequest]:
        """Handle signals in this block, and look for the file of `fleetune stop`."""
        with self, repeatedly(lambda: self.look_for_file(paths), _LOOK_EVERY_S, "stop-file"):
            yield self

    def defer(self, deferred: bool = True) -> None:
        """Only record requests from now on, or raise for them again. Raises Stopped if there was one already."""
        self.deferred = deferred
        if deferred:
            self._disarm()
        if self.asked:
            raise Stopped(_REASON)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Let requests raise `Stopped` in this block, until `defer`. After the block they are only recorded."""
        try:
            self.defer(False)
            yield
        finally:
            self.deferred = True
            self._disarm()

    def hold(self) -> StopRequest:
        """Handle SIGINT, SIGTERM and SIGHUP from now on, if this is the main thread.

        Also SIGALRM, with which this object interrupts the main thread. A `with` block restores the handlers. Under
        nohup, SIGHUP stays ignored.
        """
        held = _signals() if threading.current_thread() is threading.main_thread() else ()
        handlers: dict[int, Any] = {number: signal.signal(number, self._arrived) for number in held}
        if held:
            handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._interrupt)
            if not any(self._kept):
                self._timer = signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._kept.append(handlers)
        return self

    __enter__ = hold

    def __exit__(self, *_: object) -> None:
        self._disarm()
        kept = self._kept.pop()
        for number, handler in kept.items():
            signal.signal(number, handler)
        if kept and not any(self._kept):
            signal.setitimer(signal.ITIMER_REAL, *self._timer)

    def _disarm(self) -> None:
        """Stop the timer that raises `Stopped` again. At its end, Python lets SIGALRM kill the process."""
        if any(self._kept):
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        arrived = signal.Signals(number)
        before_s, self._arrived_s[arrived] = self._arrived_s[arrived], time.monotonic()
        if self._arrived_s[arrived] - before_s < _SAME_S[arrived]:
            return
        again, self._signalled = self._signalled and not self._patient, True
        kind = StopKind.AT_ONCE if again else StopKind.AFTER_CHECKPOINT
        self.ask("signal", arrived.name, kind)
        self._interrupt(number, frame)

    def _interrupt(self, _: int, frame: FrameType | None) -> None:
        """Raise `Stopped` in the main thread, unless the thread is already handling one of the same kind.

        Functions of importlib and logging are not interrupted: they could leave a lock that other threads wait for.
        """
        if self.deferred or not self.asked:
            return
        if frame is not None and frame.f_code.co_filename.startswith(("<frozen importlib", _LOGGING)):
            signal.setitimer(signal.ITIMER_REAL, _AFTER_LOCK_S)
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        if self._raised is not self.kind or not _is_ending():
            self._raised = self.kind
            raise Stopped(_REASON)


def _signals() -> tuple[signal.Signals, ...]:
    return tuple(
        one for one in _SAME_S if one is not signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    )


def _is_ending() -> bool:
    """Return whether the caller was interrupted while it handled a KeyboardInterrupt."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class StopRelay:
    """Writes the stop file of a run, which its workers answer with a checkpoint and an end."""

    def __init__(self, stop: StopRequest, paths: JobPaths, announce: Announcer) -> None:
        self.stop = stop
        self._paths, self._announce, self._told = paths, announce, False

    def check(self) -> None:
        """Act on the request, if there is one. The main thread calls this regularly.

        Raises:
            Interrupted: a second signal has arrived.
        """
        if self.stop.kind is StopKind.AT_ONCE:
            raise Interrupted("interrupted twice: ended at once, without a checkpoint of the last steps")
        if self.stop.asked and not self._told:
            source, reason = self.stop.source, self.stop.reason
            more = "; Ctrl-C again ends at once" if self.stop.by_ctrl_c else f": {reason}"
            with contextlib.suppress(StorageError):  # the next check tries again
                storage.write_bytes(self._paths.stop_request, str(source).encode())
                self._told = True
                self._announce("stopping", f"stopping after a checkpoint of the next step{more}")
