"""From a run's files to whoever watches: events and steps, as they come."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from jobs.errors import StorageError
from jobs.journal import JournalReader, JournalWriter
from jobs.outcome import Event, event
from jobs.paths import JobPaths
from jobs.progress import Progress

DRIVER = "driver"


ALIVE_EVERY_S = 60.0


class Announcer:
    """The driver's own events: shown at once, and kept with the run's; and a sign of life every minute."""

    def __init__(self, paths: JobPaths, progress: Progress) -> None:
        self._journal = JournalWriter(paths.events, DRIVER)
        self._progress = progress
        self._closed = threading.Event()
        threading.Thread(target=self._stay_alive, name="alive", daemon=True).start()

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        happened = event(kind, message, **data)
        self._journal.append(happened.model_dump(mode="json"))
        self._progress.event(happened)

    def close(self) -> None:
        self._closed.set()
        self._journal.close()

    def _stay_alive(self) -> None:
        """Whoever lists runs tells a long step from a dead driver by these; they are not shown."""
        while not self._closed.wait(ALIVE_EVERY_S):
            self._journal.append(event("alive", "the driver is alive").model_dump(mode="json"))


class Watch:
    """Passes on what the workers have written since the last look."""

    def __init__(self, paths: JobPaths, progress: Progress) -> None:
        self._events = JournalReader(paths.events, skip=DRIVER)
        self._metrics = JournalReader(paths.metrics)
        self._progress = progress

    def look(self) -> None:
        """Show what is new; storage that does not answer is asked again at the next look."""
        with contextlib.suppress(StorageError):
            for record in self._events.new():
                self._progress.event(Event.model_validate(record))
            for record in self._metrics.new():
                self._progress.step(record)

    @contextlib.contextmanager
    def in_background(self, every_s: float = 0.5) -> Any:
        """Look every so often, in a thread, while the context is open; once more at its end."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(every_s):
                self.look()

        thread = threading.Thread(target=run, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.look()
