"""The time that decisions go by."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Seconds since 1970, never less than before."""

    def steady_s(self) -> float:
        """Seconds that pass evenly also while this process is frozen, from an unknown start."""


class SystemClock:
    """The machine's, held where it would go backwards.

    Args:
        not_before_s: the newest time that was ever seen, by whoever led before.
    """

    def __init__(self, not_before_s: float = 0.0) -> None:
        self._newest_s = not_before_s

    def now_s(self) -> float:
        self._newest_s = max(self._newest_s, time.time())
        return self._newest_s

    def steady_s(self) -> float:
        return time.monotonic()
