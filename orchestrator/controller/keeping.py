"""Renews a leadership from a thread, while a pass of its leader takes long.

A new leader reads the store, asks the machines and plans before it writes anything, which may take longer than its
term. The epoch on every write stays the guard against a leader that was frozen.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from orchestrator.controller.leadership import Leading

_MOST_S: Final = 600.0


class Keeper:
    """Between `start` and `end`, renews every fifth of a term while `working` is open."""

    def __init__(self, leading: Leading, most_s: float = _MOST_S) -> None:
        """`most_s`: of one pass. A pass that takes longer hangs, and another server is to lead."""
        self._leading, self._most_s = leading, most_s
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
        while not self._end.wait(self._leading.term_s / 5):
            since_s = self._since_s
            if since_s is not None and time.monotonic() - since_s < self._most_s:
                with contextlib.suppress(Exception):  # the pass finds out by itself, and says so
                    self._leading.keep()
