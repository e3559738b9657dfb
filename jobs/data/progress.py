"""How far preparation has come, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from jobs.progress import duration

SAY_EVERY_S = 5.0

Say = Callable[[str], None]


class Progress:
    """Counts samples and bytes of files; says so at most every SAY_EVERY_S seconds.

    Args:
        total_bytes: of all files that will be read.
    """

    def __init__(self, say: Say, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._total, self._clock = say, total_bytes, clock
        self._started_at = self._said_at = clock()
        self._samples = 0
        self._positions: dict[tuple[str, int], int] = {}
        self._kept = 0  # bytes that an earlier prepare has read

    def keep(self, positions: Iterable[tuple[tuple[str, int], int]]) -> None:
        """What is done already: bytes of files, by source and number."""
        for key, position in positions:
            self._positions[key] = max(self._positions.get(key, 0), position)
        self._kept = sum(self._positions.values())

    def add(self, key: tuple[str, int], position: int, samples: int) -> None:
        """So many more samples; the file `key` is read up to `position`."""
        self._samples += samples
        self._positions[key] = max(self._positions.get(key, 0), position)
        now = self._clock()
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._say(self.so_far())

    def so_far(self) -> str:
        """`12,288 samples, 2,040/s, 34 % of 45.2 MB, eta 1m05s`."""
        elapsed = max(self._clock() - self._started_at, 1e-9)
        done = sum(self._positions.values())
        text = f"tokenised {self._samples:,} samples, {self._samples / elapsed:,.0f}/s"
        if done >= self._total:
            return text
        rate = (done - self._kept) / elapsed
        eta = f", eta {duration((self._total - done) / rate)}" if rate > 0 else ""
        return f"{text}, {done / self._total:.0%} of {_bytes(self._total)}{eta}"

    def rate(self) -> float:
        """Samples a second so far."""
        return self._samples / max(self._clock() - self._started_at, 1e-9)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
