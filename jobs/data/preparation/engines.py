"""Processes chunks in this process or in Ray Data's tasks, and reports the progress.

Both engines give the same tables in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from cluster.text import byte_size, duration, many
from jobs.data.sources.chunks import Task, Todo, Work, read_chunks

Engine = Literal["plain", "ray"]

_FEW_FILES = 32
_PACKED, _PACKED_SUFFIXES = 10, (".gz", ".parquet")  # compressed files hold about ten times their size in text
SAY_EVERY_S = 5.0

Say = Callable[[str], None]


def is_little(files: Sequence[tuple[str, int]], most_bytes: int) -> bool:
    """Whether files, given by name and size, hold at most `most_bytes` of text, as far as sizes tell."""
    text = sum(size * (_PACKED if name.endswith(_PACKED_SUFFIXES) else 1) for name, size in files)
    return text <= most_bytes and len(files) <= _FEW_FILES


def started(engine: Engine) -> object:
    """Start the engine's workers before the tokenizer is loaded. Keep the result until the workers are used."""
    if engine == "plain":
        return None
    from jobs.data.preparation.ray_data import warm_up

    return warm_up()


def run(task: Task, work: Work, todo: Todo, engine: Engine, say: Say) -> Iterator[Any]:
    """Yield the tables that `task` makes of all remaining chunks, in source order."""
    if engine == "plain" or not todo:
        return _run_here(task, work, todo)
    from jobs.data.preparation.ray_data import LEAST_CPUS_PER_TASK, run_on_ray, spare_cpus

    if spare_cpus() < LEAST_CPUS_PER_TASK:
        say("no CPU of the cluster is free: tokenising in the driver")
        return _run_here(task, work, todo)
    return run_on_ray(task, work, todo)


def _run_here(task: Task, work: Work, todo: Todo) -> Iterator[Any]:
    for file, skip in todo.items():
        for chunk in read_chunks(file, work, skip):
            yield task(chunk, work)


class Progress:
    """Counts samples and bytes of files, and reports them at most every SAY_EVERY_S seconds.

    Args:
        total_bytes: bytes of all files that will be read.
    """

    def __init__(self, say: Say, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._total, self._clock = say, total_bytes, clock
        self._said_at = clock()
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
