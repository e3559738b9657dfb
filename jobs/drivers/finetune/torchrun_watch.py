"""Ends a torchrun process whose gang has failed while its main thread waits in a collective.

NCCL waits half an hour for a rank that has left. One process of each node looks at `failures/`; torchrun ends the other
processes of that node once this one has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from jobs.errors import StorageError
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

EVERY_S = 1.0
# For the main thread, which may hear of the failure too, and then ends in the ordinary way.
GRACE_S = 5.0


class FailureWatch:
    """Looks while its context is open."""

    def __init__(
        self, paths: JobPaths, end: Callable[[], None], *, every_s: float = EVERY_S, grace_s: float = GRACE_S
    ) -> None:
        """`end` is called in a thread, and ends the process."""
        self._paths, self._end, self._every_s, self._grace_s = paths, end, every_s, grace_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)

    def __enter__(self) -> FailureWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()  # it may be about to end the process, and has written the outcome then

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._failed():
                if not self._closed.wait(self._grace_s):
                    self._end()
                return

    def _failed(self) -> bool:
        with contextlib.suppress(StorageError):  # asked again at the next look
            return bool(storage.list_names(self._paths.failures))
        return False
