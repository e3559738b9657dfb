"""A thread that renews a leadership while a pass takes long.

A new leader reads the store, asks the machines and plans before its first write, which may take longer than its term.
Writes of a leader that was frozen are still refused, by the epoch that every write carries.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from orchestrator.controller.leadership import LeaderElection

_MOST_S: Final = 600.0  # longest time to renew for one pass; far above the time of a pass


class LeadershipRenewal:
    """Renews the leadership every fifth of a term, between `start` and `end`, while `working` is entered."""

    def __init__(self, election: LeaderElection, most_s: float = _MOST_S) -> None:
        """`most_s`: longest time to renew for one pass. A longer pass hangs, and another server should lead."""
        self._election, self._most_s = election, most_s
        self._since_s: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leadership", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._end.set()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._since_s = None

    def _run(self) -> None:
        while not self._end.wait(self._election.term_s / 5):
            since_s = self._since_s
            if since_s is not None and time.monotonic() - since_s < self._most_s:
                with contextlib.suppress(Exception):  # the pass meets and reports the same error
                    self._election.keep()
