"""A wait that another thread or a signal handler can end."""

from __future__ import annotations

import contextlib
import threading


class Wakeup:
    """Like `threading.Event`, but a signal handler may set it, and each wait clears it. Only one thread may wait.

    A handler that sets an Event may block for ever if it has interrupted a wait for that Event. `SimpleQueue.get` waits
    for ever if a handler interrupts it and ends after the timeout (seen in CPython 3.11.7).
    """

    def __init__(self) -> None:
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was set already
            self._unset.release()

    def wait(self, timeout_s: float) -> None:
        """Return when it is set, or after the timeout, and clear it."""
        self._unset.acquire(timeout=timeout_s)
