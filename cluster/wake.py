"""A wait that a thread or a signal handler can end."""

from __future__ import annotations

import contextlib
import threading


class Wake:
    """One thread waits, and any thread or signal handler ends its wait. A wake-up before the wait ends it at once.

    An Event must not be set by a handler that interrupts its own wait. A SimpleQueue may be filled by a handler, but
    its `get` waits for ever if a handler ends after the timeout (seen in CPython 3.11.7).
    """

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was woken already
            self._asleep.release()

    def wait(self, timeout_s: float) -> None:
        self._asleep.acquire(timeout=timeout_s)
