"""The row order: which rows each step trains on, as a pure function of (prepared data, seed, step).

It never depends on the number of workers, on restarts or on timing. With grouping by length it also depends on the end
of the run, which shortens the last group. If a run has raised the weight of replay, it depends on the steps where that
happened, which checkpoints hold (see `jobs.planning.replay`). Nothing else is stored: an epoch visits the blocks of the
data in a permuted order, and permutes the rows of every window of consecutive blocks. Both permutations are keyed (see
`permutation`), so any position can be computed directly. A reader that follows the order goes through the blocks window
by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jobs.data.order.permutation import Rows, Words, key, keys, walk

WINDOW_BLOCKS = 16
_SPAN_STEPS, _SPANS = 32, 8  # steps computed at once for `rows_of_step`, and how many such spans are cached
GROUP_STEPS = 32  # steps whose rows are sorted by length together
_BLOCKS, _WINDOW, _GROUP, MICRO_BATCH = 1, 2, 3, 4  # purposes of keys
_PIECE_ROWS = 2**15  # rows processed at once, so that numpy's passes stay in a core's cache


class RowOrder(Protocol):
    """The source of a `StepPlan`'s rows: `ShuffledRows`, or a mixture of several (see `jobs.data.order.mixture`)."""

    @property
    def num_rows(self) -> int:
        """Positions of an epoch."""

    @property
    def all_rows(self) -> int:
        """Number of rows of the data; all rows of the order are in range(all_rows)."""

    @property
    def seed(self) -> int: ...

    @property
    def changes_at(self) -> tuple[int, ...]:
        """Positions from which on the rows are of other sources, or of the same ones in other shares."""

    def rows_between(self, start: int, stop: int) -> Rows: ...


@dataclass(frozen=True)
class ShuffledRows:
    """An endless sequence of rows: position p is in epoch p // num_rows; each epoch is a permutation of all rows.

    Windows consist of blocks, and are numbered through all epochs. Only the last block of the data may be shorter; the
    window that contains it is shorter too. The last window of an epoch may also be shorter.
    """

    num_rows: int
    rows_per_block: int
    seed: int

    @property
    def all_rows(self) -> int:
        return self.num_rows

    @property
    def changes_at(self) -> tuple[int, ...]:
        return ()

    @property
    def num_blocks(self) -> int:
        return -(-self.num_rows // self.rows_per_block)

    @property
    def _windows(self) -> int:
        return -(-self.num_blocks // WINDOW_BLOCKS)

    @property
    def _missing(self) -> int:
        return self.num_blocks * self.rows_per_block - self.num_rows

    def rows_between(self, start: int, stop: int) -> Rows:
        """Return the rows at positions start..stop-1; (stop - start,) int64. Always computes whole windows."""
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        first, last = self._windows_at(np.array([start, stop - 1]))
        windows = np.arange(first, last + 1)
        starts = self._starts(np.arange(first, last + 2))
        begin, sizes = int(starts[0]), np.diff(starts)
        rows = np.empty(starts[-1] - begin, dtype=np.int64)
        for size, some in _alike(sizes, _PIECE_ROWS // int(sizes.max())):
            inside = np.arange(size)[None]
            rows[starts[some, None] - begin + inside] = self._rows_of_windows(windows[some, None], inside, size)
        return rows[start - begin : stop - begin]

    def _rows_of_windows(self, windows: Rows, inside: Rows, size: int) -> Rows:
        """Return the rows at places `inside` (n or 1, m) of windows (n, 1) with `size` rows each; (n, m) int64."""
        epochs, numbers = np.divmod(windows, self._windows)
        inside = walk(inside, size, keys(key(self.seed, _WINDOW), epochs, numbers))
        first_places = numbers * WINDOW_BLOCKS
        inside = self._filled_up(inside, first_places, epochs)
        places = inside // self.rows_per_block
        blocks = self._blocks_at(first_places, places, keys(key(self.seed, _BLOCKS), epochs))
        return (blocks - places) * self.rows_per_block + inside

    def _blocks_at(self, first_places: Rows, places: Rows, with_keys: Words) -> Rows:
        """Return the blocks at `places` (n, m) after the `first_places` (n, 1) of windows, under their epochs' keys."""
        every = np.minimum(first_places + np.arange(WINDOW_BLOCKS), self.num_blocks - 1)
        blocks = walk(every, self.num_blocks, with_keys)
        return np.take_along_axis(blocks, places, axis=1)

    def _filled_up(self, inside: Rows, first_places: Rows, epochs: Rows) -> Rows:
        """Convert places (n, m) in windows to places as if the short block had full length."""
        short = self._short_places(epochs) - first_places
        here = (short >= 0) & (short < WINDOW_BLOCKS)
        if not here.any():
            return inside
        return inside + self._missing * (here & (inside >= (short + 1) * self.rows_per_block - self._missing))

    def _starts(self, windows: Rows) -> Rows:
        """Return the positions at which windows (n,) begin."""
        epochs, numbers = np.divmod(windows, self._windows)
        places = numbers * WINDOW_BLOCKS
        lost = np.where(places > self._short_places(epochs), self._missing, 0)
        starts: Rows = epochs * self.num_rows + places * self.rows_per_block - lost
        return starts

    def _windows_at(self, positions: Rows) -> Rows:
        """Return the windows in which positions (n,) lie."""
        epochs, offsets = np.divmod(positions, self.num_rows)
        behind = offsets >= (self._short_places(epochs) + 1) * self.rows_per_block - self._missing
        filled_up = offsets + np.where(behind, self._missing, 0)
        windows: Rows = epochs * self._windows + filled_up // (self.rows_per_block * WINDOW_BLOCKS)
        return windows

    def _short_places(self, epochs: Rows) -> Rows:
        """Return the place of the data's last block, which may be short, in the block sequence of each epoch."""
        if not self._missing:
            return np.zeros_like(epochs)  # no block is short, so the value has no effect
        if epochs.min() == epochs.max():
            return np.full_like(epochs, _short_place(self, int(epochs.flat[0])))
        distinct, which = np.unique(epochs, return_inverse=True)
        last = np.array([[self.num_blocks - 1]])
        places = walk(last, self.num_blocks, keys(key(self.seed, _BLOCKS), distinct)[:, None], forward=False)[:, 0]
        return places[which].reshape(epochs.shape)


@lru_cache(maxsize=256)  # a mixture has one order for each section
def _short_place(order: ShuffledRows, epoch: int) -> int:
    """Return one epoch's `_short_places`, cached because a loop over steps asks for it repeatedly."""
    last, with_key = np.array([[order.num_blocks - 1]]), keys(key(order.seed, _BLOCKS), np.array([[epoch]]))
    return int(walk(last, order.num_blocks, with_key, forward=False)[0, 0])


def _alike(sizes: Rows, at_once: int) -> Iterator[tuple[int, Rows]]:
    """Group items by size: yield a size, and the numbers of up to `at_once` items (at least one) of that size."""
    at_once = max(1, at_once)
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        for start in range(0, len(same), at_once):
            yield int(size), same[start : start + at_once]


@dataclass(frozen=True)
class StepPlan:
    """Which rows each optimizer step trains on.

    Each step takes `rows_per_step` positions, also across the border between two epochs; only the last step of a run
    may be smaller. With `lengths`, the steps of a group of `GROUP_STEPS` inside one epoch distribute their rows by
    length, so that padding is smaller. A step across a border of epochs is not changed.
    """

    order: RowOrder
    rows_per_step: int
    total_steps: int
    total_rows: int  # positions that the whole run uses
    lengths: npt.NDArray[np.int32] | None = field(default=None, compare=False)

    @cached_property
    def steps_of_changes(self) -> frozenset[int]:
        """The steps (0-based) with the positions `RowOrder.changes_at`."""
        return frozenset(position // self.rows_per_step for position in self.order.changes_at)

    def rows_of_step(self, step: int) -> Rows:
        """Return the rows of step `step` (0-based) over all workers; (rows_per_step,) int64, fewer at the end."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside 0..{self.total_steps - 1}")
        first = step // _SPAN_STEPS * _SPAN_STEPS
        start = (step - first) * self.rows_per_step
        return self._span(first)[start : start + self.rows_per_step]

    @cached_property
    def _span(self) -> Callable[[int], Rows]:
        """Returns the rows of the steps from a first one on. Recent spans are kept; two threads may ask for them."""
        return lru_cache(_SPANS)(lambda first: self.rows_of_steps(first, min(first + _SPAN_STEPS, self.total_steps)))

    def rows_of_steps(self, start: int, stop: int) -> Rows:
        """Return the rows of steps start..stop-1 in sequence, much faster than `rows_of_step` for many steps.

        Returns:
            ((stop - start) * rows_per_step,) int64, fewer at the end of the run.

        Raises:
            ValueError: a step is outside the run.
        """
        if not 0 <= start <= stop <= self.total_steps:
            raise ValueError(f"steps {start}..{stop - 1} are not inside 0..{self.total_steps - 1}")
        if self.lengths is None or start == stop:
            return self._in_order(start, stop)
        firsts, sizes = self._groups(start, stop)
        low = min([start, *firsts[:1].tolist()])  # first step of whole groups
        high = max([stop, *(firsts + sizes)[-1:].tolist()])
        rows = self._in_order(low, high)
        for size, some in _alike(sizes, _PIECE_ROWS // (GROUP_STEPS * self.rows_per_step)):
            places = ((firsts[some] - low) * self.rows_per_step)[:, None] + np.arange(size * self.rows_per_step)
            rows[places] = self._by_length(rows[places], firsts[some], size)
        return rows[(start - low) * self.rows_per_step : (stop - low) * self.rows_per_step]

    def epoch_of_step(self, step: int) -> float:
        """Return the passes over the data that are complete after `step` steps."""
        return min(step * self.rows_per_step, self.total_rows) / self.order.num_rows

    def _in_order(self, start: int, stop: int) -> Rows:
        """Return the rows of steps start..stop-1 without grouping."""
        return self.order.rows_between(start * self.rows_per_step, min(stop * self.rows_per_step, self.total_rows))

    @cached_property
    def _sort_keys(self) -> npt.NDArray[Any]:
        """The lengths, as 16-bit numbers if they fit, because numpy sorts these by radix."""
        assert self.lengths is not None
        fit = self.lengths.min() >= 0 and self.lengths.max() < 2**16
        return self.lengths.astype(np.uint16) if fit else self.lengths

    def _by_length(self, rows: Rows, firsts: Rows, size: int) -> Rows:
        """Distribute the rows of each group of `size` steps by length.

        Args:
            rows: (groups, size * rows_per_step).
            firsts: (groups,) first step of each group.

        Returns:
            The same rows, with similar lengths within a step; the steps of a group are shuffled.
        """
        by_length = np.take_along_axis(rows, np.argsort(self._sort_keys[rows], axis=1, kind="stable"), axis=1)
        shuffled = walk(np.arange(size)[None], size, keys(key(self.order.seed, _GROUP), firsts)[:, None])
        steps = by_length.reshape(len(rows), size, self.rows_per_step)
        return steps[np.arange(len(rows))[:, None], shuffled].reshape(rows.shape)

    def _groups(self, start: int, stop: int) -> tuple[Rows, Rows]:
        """Return first steps and sizes of the groups that contain steps start..stop-1 (at least one step).

        A step across a border of epochs belongs to no group.
        """
        size, rows = self.order.num_rows, self.rows_per_step
        epochs = np.arange(start * rows // size, (stop * rows - 1) // size + 1)
        firsts = -(-epochs * size // rows)
        lasts = np.minimum((epochs + 1) * size, self.total_rows) // rows
        counts = np.maximum(-(-(lasts - firsts) // GROUP_STEPS), 0)  # number of groups in each epoch
        # The number of each group in its epoch.
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(firsts, counts) + number * GROUP_STEPS
        sizes = np.minimum(np.repeat(lasts, counts) - starts, GROUP_STEPS)
        wanted = (starts < stop) & (starts + sizes > start)
        return starts[wanted], sizes[wanted]


def micro_batches(rows: Rows, per_device: int, accumulation: int, num_workers: int) -> list[list[Rows]]:
    """Distribute the rows of one step over workers.

    Micro-batch number m of the step (rows m * per_device and following) goes to worker m % num_workers, as its
    micro-batch m // num_workers. So the division into micro-batches does not depend on the number of workers. With
    too few rows, the last micro-batches are short or empty.

    Returns:
        [worker][accumulation] -> (at most per_device,) rows.
    """
    if len(rows) > per_device * accumulation * num_workers:
        raise ValueError(f"{len(rows)} rows do not fit {per_device} x {accumulation} x {num_workers}")
    pieces = [
        rows[start : start + per_device] for start in range(0, per_device * accumulation * num_workers, per_device)
    ]
    return [[pieces[turn * num_workers + worker] for turn in range(accumulation)] for worker in range(num_workers)]


def computed_tokens(lengths: Rows, per_device: int, accumulation: int, num_workers: int) -> Rows:
    """Count the tokens that decide how long each step takes, padding included.

    In each forward pass, all workers wait for the one with most tokens.

    Args:
        lengths: (steps, rows), tokens of each row of each step.

    Returns:
        (steps,) int64.
    """
    places = np.zeros((len(lengths), accumulation * num_workers * per_device), dtype=np.int64)
    places[:, : lengths.shape[1]] = lengths
    micros = places.reshape(len(lengths), accumulation, num_workers, per_device)
    padded = micros.max(axis=-1) * (micros > 0).sum(axis=-1)
    found: Rows = padded.max(axis=-1).sum(axis=-1)
    return found


def shares(count: int, per_device: int, num_workers: int) -> Iterator[tuple[int, int]]:
    """Divide range(count) into evaluation rounds: each worker gets one (start, stop), possibly empty, in every round.

    Yields:
        (start, stop) for worker 0, 1, ... of the first round, then of the second round, and so on.
    """
    per_round = per_device * num_workers
    for start in range(0, count, per_round):
        for worker in range(num_workers):
            low = min(start + worker * per_device, count)
            yield low, min(low + per_device, count)
