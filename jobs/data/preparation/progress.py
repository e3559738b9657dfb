"""Reports the progress of a preparation, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from cluster.text import byte_size, duration, many

SAY_EVERY_S = 5.0

Say = Callable[[str], None]


class Progress:
    """Counts samples and bytes of files, and reports them at most every SAY_EVERY_S seconds.

    Args:
        total_bytes: bytes of all files that will be read.
    """

    def __init__(self, say: Say, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._total, self._clock = say, total_bytes, clock
        self._started_at = self._said_at = clock()
        self._samples = 0
        self._positions: dict[tuple[str, int], int] = {}
        # Time, samples and bytes when the first chunk was done, because before that workers were starting.
        self._first: tuple[float, int, int] | None = None

    def keep(self, positions: Iterable[tuple[tuple[str, int], int]]) -> None:
        """Count what earlier preparations have done: bytes of files, by source and number of the file."""
        for key, position in positions:
            self._positions[key] = max(self._positions.get(key, 0), position)

    def add(self, key: tuple[str, int], position: int, samples: int) -> None:
        """Add samples; the file `key` is now read up to `position`."""
        self._samples += samples
        self._positions[key] = max(self._positions.get(key, 0), position)
        now = self._clock()
        if self._first is None:
            self._first = (now, self._samples, self._done)
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._say(self.so_far())

    @property
    def _done(self) -> int:
        return sum(self._positions.values())

    def so_far(self) -> str:
        """Format progress: `tokenised 12,288 samples, 2,040/s, 34 % of 45.2 MB, eta 1m05s`."""
        text = f"tokenised {many(self._samples, 'sample')}"
        first_at, samples, done = self._first or (self._clock(), 0, 0)
        elapsed = self._clock() - first_at
        if elapsed > 0.5:
            text += f", {(self._samples - samples) / elapsed:,.0f}/s"
        if self._done >= self._total:
            return text
        text += f", {self._done / self._total:.0%} of {byte_size(self._total)}"
        rate = (self._done - done) / elapsed if elapsed > 0.5 else 0.0
        return text + (f", eta {duration((self._total - self._done) / rate)}" if rate > 0 else "")

    def elapsed_s(self) -> float:
        """Return the seconds since the start."""
        return self._clock() - self._started_at
