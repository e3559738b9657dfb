"""Ends a torchrun process if its gang has failed while its main thread waits in a collective.

NCCL waits half an hour for a rank that has left. One process of each node watches `failures/`; once it has ended,
torchrun ends the other processes of that node.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from jobs.errors import StorageError
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

EVERY_S = 1.0
# Seconds for the main thread, which may notice the failure too and then ends in the ordinary way.
GRACE_S = 5.0


class FailureWatch:
    """Watches for failures while its context is open."""

    def __init__(
        self, paths: JobPaths, end: Callable[[], None], *, every_s: float = EVERY_S, grace_s: float = GRACE_S
    ) -> None:
        """`end` is called in a thread and must end the process."""
        self._paths, self._end, self._every_s, self._grace_s = paths, end, every_s, grace_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)

    def __enter__(self) -> FailureWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()  # if it is about to end the process, it has written the outcome

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._failed():
                if not self._closed.wait(self._grace_s):
                    self._end()
                return

    def _failed(self) -> bool:
        with contextlib.suppress(StorageError):  # the next look asks again
            return bool(storage.list_names(self._paths.failures))
        return False
