"""Time that a test moves."""

from __future__ import annotations

import time


class FakeClock:
    """Call it for the time in seconds. It stands still until it is moved, or runs at a rate of its own."""

    def __init__(self, now_s: float = 0.0, rate: float = 0.0) -> None:
        """`rate`: its seconds in one real second."""
        self._now_s, self._rate, self._began_s = now_s, rate, time.monotonic()

    def __call__(self) -> float:
        return self._now_s + (time.monotonic() - self._began_s) * self._rate

    def now_s(self) -> float:
        """As a clock of the queue."""
        return self()

    def steady_s(self) -> float:
        return self()

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now_s += seconds
