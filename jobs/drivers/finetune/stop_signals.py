"""Handles Ctrl-C and SIGTERM: the first asks for a checkpoint and an end, the second ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from jobs.errors import Interrupted, StorageError
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

_HELD = (signal.SIGINT, signal.SIGTERM)


class _Stopped(KeyboardInterrupt):
    """Raised by the signal handler. Code that catches every `Exception` lets it pass, because it is not one."""


class StopSignals:
    """Handles SIGINT and SIGTERM while its context is open.

    Until `graceful` is set, a signal ends the context at once, with `Interrupted`. After that, the first signal writes
    the run's stop request, which the gang answers with a checkpoint; a second one raises at the next `check`.
    """

    def __init__(self, paths: JobPaths, announce: Announcer, *, patient: bool = False) -> None:
        """`patient`: further signals count as the first, because a queue and its machines may both send one."""
        self.graceful = False
        self._paths, self._announce, self._patient = paths, announce, patient
        self._count = 0
        self._asked = False
        self._kept: dict[int, Any] = {}

    def of_run(self, paths: JobPaths, announce: Announcer) -> StopSignals:
        """Make the handler of another run in this process, to be opened inside of this context."""
        return StopSignals(paths, announce, patient=self._patient)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._kept = {number: signal.getsignal(number) for number in _HELD}
        self.hold()
        return self

    @property
    def asked(self) -> bool:
        """Whether the run was asked to stop."""
        return self._count > 0

    def hold(self) -> None:
        """Install the handlers; again after `ray.init`, which replaces the one of SIGTERM in Python and below it."""
        for number in self._kept:
            signal.signal(number, self._arrived)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        if isinstance(error, _Stopped):
            raise Interrupted("interrupted while no workers were training") from error

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self._count = 1 if self._patient else self._count + 1
        if not self.graceful:
            raise _Stopped

    def check(self) -> None:
        """Act on signals that have arrived. The main thread calls this regularly.

        Raises:
            Interrupted: a second signal has arrived.
        """
        if self._count == 1 and not self._asked:
            with contextlib.suppress(StorageError):  # the next check tries again
                storage.write_bytes(self._paths.stop_request, b"signal")
                self._asked = True
                self._announce("stopping", "stopping after a checkpoint of the next step; Ctrl-C again ends at once")
        if self._count > 1:
            raise Interrupted("interrupted twice: ended at once, without a checkpoint of the last steps")
