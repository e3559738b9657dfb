"""The end of an embedded server (one that a script has started) when it is not needed any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import Filter, Store
from orchestrator.service.admission.clients import any_alive

_IDLE_S = 10.0
_UNFINISHED = Filter(states=tuple(state for state in State if state not in ENDED))


class IdleShutdown:
    """Ends the server after a time without living clients and unfinished jobs. Called after each pass."""

    def __init__(self, store: Store, home: Path, end: Callable[[], None], idle_s: float = _IDLE_S) -> None:
        self._store, self._home, self._end, self._idle_s = store, home, end, idle_s
        self._needed_s = time.monotonic()

    def __call__(self) -> None:
        """Check whether the server is needed. Raises StoreBroken."""
        if any_alive(self._home) or self._store.jobs(_UNFINISHED, limit=1):
            self._needed_s = time.monotonic()
        elif time.monotonic() - self._needed_s > self._idle_s:
            self._end()
