"""Passes events and steps from a run's files to a viewer as they are written."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from cluster.errors import StorageError
from jobs.run.outcome import Event, event
from jobs.run.paths import JobPaths
from jobs.run.progress import Progress
from jobs.storage import files as storage
from jobs.storage.journal import JournalReader, JournalWriter, Record

DRIVER = "driver"
ALIVE = "alive"
ALIVE_EVERY_S = 60.0
_LOOK_EVERY_S = 0.5
_LOOK_AT_REMOTE_EVERY_S = 5.0  # each look lists two folders, which object storage charges for
# A run goes on without its display: the terminal or the reader of a pipe may be gone, or a disk full.
_DISPLAY_MAY_FAIL = contextlib.suppress(OSError)


def this_driver() -> dict[str, Any]:
    """Identify this process. Hosts may share a name, and containers a host; `machine` distinguishes these."""
    machine = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        machine = f"{file.read().strip()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return {"host": os.uname().nodename, "machine": machine, "pid": os.getpid()}


@contextlib.contextmanager
def repeatedly(act: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Call `act` every `every_s` seconds in a thread while the context is open."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            act()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Announcer:
    """Shows the driver's events and stores them with the run's. Writes a sign of life at the start and every minute."""

    def __init__(self, paths: JobPaths, progress: Progress) -> None:
        self._journal = JournalWriter(paths.events, DRIVER)
        self._progress = progress
        self._sign_of_life()
        with contextlib.suppress(StorageError):
            self._journal.flush()  # so that other processes see at once that the run has a driver
        self._alive = contextlib.ExitStack()
        self._alive.enter_context(repeatedly(self._sign_of_life, ALIVE_EVERY_S, "alive"))

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        happened = self.record(kind, message, **data)
        with _DISPLAY_MAY_FAIL:
            self._progress.event(happened)

    def record(self, kind: str, message: str, **data: Any) -> Event:
        """Store an event that is not shown."""
        happened = event(kind, message, **data)
        self._journal.append(happened.model_dump(mode="json"))
        return happened

    def flush(self) -> None:
        """Write all events to storage now. Raises StorageError."""
        self._journal.flush()

    def close(self) -> None:
        self._alive.close()
        self._journal.close()

    def _sign_of_life(self) -> None:
        """With this event, readers can distinguish a long step from a dead driver."""
        self.record(ALIVE, "the driver is alive", **this_driver())


class Watch:
    """Shows the events and steps that workers have written since the last look, or since this object was made."""

    def __init__(self, paths: JobPaths, progress: Progress) -> None:
        self._events = JournalReader(paths.events, skip=DRIVER)
        self._metrics = JournalReader(paths.metrics)
        self._steps: deque[Record] = deque()
        self._progress = progress
        self._every_s = 0.0 if storage.is_local(paths.root) else _LOOK_AT_REMOTE_EVERY_S
        self._looked_s = -math.inf
        self.newest: Record | None = None  # the step that was shown last
        with contextlib.suppress(StorageError):
            self._events.pass_over()
            self._metrics.pass_over()

    def look_when_due(self) -> None:
        """Look, unless the files are on remote storage and the last look was less than five seconds ago."""
        if time.monotonic() - self._looked_s >= self._every_s:
            self.look()

    def look(self) -> None:
        """Show new events and steps. If the storage does not answer, the next look asks again."""
        self._looked_s = time.monotonic()
        with contextlib.suppress(StorageError):
            for happened in map(Event.model_validate, self._events.new()):
                if record := happened.data.get("record"):  # a step that reaches the metrics only after its evaluation
                    self._show_steps(before=record["step"])
                    self._show(record)
                with _DISPLAY_MAY_FAIL:
                    self._progress.event(happened)
            self._show_steps()

    def _show_steps(self, before: int | None = None) -> None:
        """Show the new steps, up to the first one that is not before `before`. Raises StorageError."""
        self._steps.extend(self._metrics.new())
        while self._steps and (before is None or self._steps[0]["step"] < before):
            self._show(self._steps.popleft())

    def _show(self, record: Record) -> None:
        self.newest = record
        with _DISPLAY_MAY_FAIL:
            self._progress.step(record)

    @contextlib.contextmanager
    def in_background(self) -> Iterator[None]:
        """Look twice a second, when due, in a thread while the context is open, and once more at its end."""
        try:
            with repeatedly(self.look_when_due, _LOOK_EVERY_S, "watch"):
                yield
        finally:
            self.look()
