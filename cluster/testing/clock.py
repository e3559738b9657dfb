"""A clock for tests, which set its time."""

from __future__ import annotations

import time


class FakeClock:
    """Returns the time in seconds when it is called. It stands still until `advance`, or runs at a given rate."""

    def __init__(self, now_s: float = 0.0, rate: float = 0.0) -> None:
        """`rate`: seconds of this clock in one real second."""
        self._now_s, self._rate, self._began_s = now_s, rate, time.monotonic()

    def __call__(self) -> float:
        return self._now_s + (time.monotonic() - self._began_s) * self._rate

    def now_s(self) -> float:
        """Return the time, as the queue's `Clock` does."""
        return self()

    def steady_s(self) -> float:
        return self()

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now_s += seconds
