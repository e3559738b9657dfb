"""The order of rows: which rows step s trains on, as a pure function of (prepared data, seed, s).

Never of the number of workers, of restarts or of timing (with grouping by length, also of where the run ends, since the
last group is cut there); and nothing is stored: an epoch visits the blocks of the data
in a permuted order, and permutes the rows of every window of consecutive blocks. Both permutations are keyed (a Feistel
network with cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), so any position can be
asked for directly. A reader that follows the order goes through the blocks window by window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

WINDOW_BLOCKS = 16
GROUP_STEPS = 32  # rows of like length are gathered from this many steps
_ROUNDS = 4
_BLOCKS, _WINDOW, _GROUP, MICRO_BATCH = 1, 2, 3, 4  # what a key is for


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit words."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(seed: int, *parts: int) -> int:
    """A 64-bit key from a seed and a few numbers."""
    word = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            word = _mix(word ^ _mix(np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))
    return int(word[0])


def permute(values: Rows, size: int, with_key: int) -> Rows:
    """Where a keyed permutation of range(size) sends each of `values`.

    Args:
        values: (n,) numbers in range(size).
        size: of the domain, at least 1.
        with_key: another key is another permutation.

    Returns:
        (n,) int64, again in range(size).
    """
    return _walk(values, size, with_key, forward=True)


def unpermute(values: Rows, size: int, with_key: int) -> Rows:
    """The inverse of `permute`."""
    return _walk(values, size, with_key, forward=False)


def _walk(values: Rows, size: int, with_key: int, forward: bool) -> Rows:
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    keys = [np.uint64(key(with_key, number)) for number in range(_ROUNDS)]
    x = np.asarray(values, dtype=np.uint64).copy()
    outside = np.ones(len(x), dtype=bool)
    with np.errstate(over="ignore"):
        while outside.any():  # walk the cycle until back inside: fewer than 4 turns on average
            left, right = x[outside] >> half_bits, x[outside] & mask
            for round_key in keys if forward else reversed(keys):
                if forward:
                    left, right = right, left ^ (_mix(right ^ round_key) & mask)
                else:
                    left, right = right ^ (_mix(left ^ round_key) & mask), left
            x[outside] = (left << half_bits) | right
            outside = x >= np.uint64(size)
    return x.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """An endless sequence of rows: position p is in epoch p // num_rows; each epoch is a permutation of all rows."""

    num_rows: int
    rows_per_block: int
    seed: int

    def rows_at(self, positions: Rows) -> Rows:
        """The row at each position.

        Args:
            positions: (n,) int64, each at least 0.

        Returns:
            (n,) int64 in range(num_rows).
        """
        positions = np.asarray(positions, dtype=np.int64)
        rows = np.empty_like(positions)
        epochs, offsets = np.divmod(positions, self.num_rows)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._rows_of_epoch(int(epoch), offsets[here])
        return rows

    def _rows_of_epoch(self, epoch: int, offsets: Rows) -> Rows:
        layout = _epoch_layout(self.num_rows, self.rows_per_block, key(self.seed, _BLOCKS, epoch))
        window_rows = self.rows_per_block * WINDOW_BLOCKS
        # Windows are cut by block, so the one that holds the short block (if any) is shorter by what that block lacks.
        windows = layout.block_place(offsets) // WINDOW_BLOCKS
        shuffled = np.empty_like(offsets)
        for window in np.unique(windows):
            here = windows == window
            start = layout.start_of_place(int(window) * WINDOW_BLOCKS)
            size = min(layout.start_of_place((int(window) + 1) * WINDOW_BLOCKS), self.num_rows) - start
            assert size <= window_rows
            shuffled[here] = start + permute(offsets[here] - start, size, key(self.seed, _WINDOW, epoch, int(window)))
        places = layout.block_place(shuffled)
        inside = shuffled - layout.starts_of_places(places)
        blocks = permute(places, layout.num_blocks, layout.key)
        return blocks * self.rows_per_block + inside


@dataclass(frozen=True)
class _EpochLayout:
    """One epoch's sequence of blocks, of which the data's last one may be short and comes at `short_place`."""

    num_blocks: int
    rows_per_block: int
    missing: int  # rows that the short block lacks
    short_place: int
    key: int

    def start_of_place(self, place: int) -> int:
        return place * self.rows_per_block - (self.missing if place > self.short_place else 0)

    def starts_of_places(self, places: Rows) -> Rows:
        return places * self.rows_per_block - np.where(places > self.short_place, self.missing, 0)

    def block_place(self, offsets: Rows) -> Rows:
        after_short = self.start_of_place(self.short_place + 1)
        moved = np.where(offsets >= after_short, offsets + self.missing, offsets)
        return moved // self.rows_per_block


@lru_cache(maxsize=16)
def _epoch_layout(num_rows: int, rows_per_block: int, with_key: int) -> _EpochLayout:
    num_blocks = -(-num_rows // rows_per_block)
    return _EpochLayout(
        num_blocks=num_blocks,
        rows_per_block=rows_per_block,
        missing=num_blocks * rows_per_block - num_rows,
        short_place=int(unpermute(np.array([num_blocks - 1]), num_blocks, with_key)[0]),
        key=with_key,
    )


@dataclass(frozen=True)
class StepPlan:
    """Which rows each optimizer step takes, and which of them each worker.

    Steps take `rows_per_step` positions each and do not care for the border between two epochs; only the last step of
    a run may be smaller. With `lengths`, the steps of a group of `GROUP_STEPS` inside one epoch share their rows out
    by length, so that less is padded; a step that lies across a border of epochs stays as it is.
    """

    order: Order
    rows_per_step: int
    total_steps: int
    total_rows: int  # positions that the whole run takes
    lengths: npt.NDArray[np.int32] | None = field(default=None, compare=False)
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # the last group asked for

    def rows_of_step(self, step: int) -> Rows:
        """Rows of step `step` (0-based) over all workers; (rows_per_step,) int64, fewer at the end of the run."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside 0..{self.total_steps - 1}")
        group = self._group_of(step) if self.lengths is not None else None
        if group is None:
            start = step * self.rows_per_step
            return self.order.rows_at(np.arange(start, min(start + self.rows_per_step, self.total_rows)))
        first, size = group
        if self._cache.get("first") != first:
            self._cache.update(first=first, steps=self._rows_by_length(first, size))
        rows: Rows = self._cache["steps"][step - first]
        return rows

    def epoch_of_step(self, step: int) -> float:
        """Passes over the data that are complete when `step` steps are done."""
        return min(step * self.rows_per_step, self.total_rows) / self.order.num_rows

    def _rows_by_length(self, first: int, size: int) -> Rows:
        """Rows of `size` steps from `first`, of like length within a step; (size, rows_per_step) int64."""
        assert self.lengths is not None
        rows = self.order.rows_at(np.arange(first * self.rows_per_step, (first + size) * self.rows_per_step))
        by_length = rows[np.argsort(self.lengths[rows], kind="stable")].reshape(size, self.rows_per_step)
        shuffled: Rows = by_length[permute(np.arange(size), size, key(self.order.seed, _GROUP, first))]
        return shuffled

    def _group_of(self, step: int) -> tuple[int, int] | None:
        """First step and number of steps of the group of `step`, or None for a step that stands alone."""
        size, rows = self.order.num_rows, self.rows_per_step
        epoch = step * rows // size
        first = -(-epoch * size // rows)  # first and last (exclusive) step that lie wholly inside this epoch
        last = min((epoch + 1) * size, self.total_rows) // rows
        if not first <= step < last:
            return None
        start = first + (step - first) // GROUP_STEPS * GROUP_STEPS
        return start, min(GROUP_STEPS, last - start)


def micro_batches(rows: Rows, per_device: int, accumulation: int, num_workers: int) -> list[list[Rows]]:
    """Deal the rows of one step to workers.

    Micro-batch number m of the step (rows m * per_device and following) goes to worker m % num_workers, as its
    micro-batch m // num_workers. So the cut into micro-batches does not depend on the number of workers. Where there
    are too few rows the last micro-batches are short or empty.

    Returns:
        [worker][accumulation] -> (at most per_device,) rows.
    """
    if len(rows) > per_device * accumulation * num_workers:
        raise ValueError(f"{len(rows)} rows do not fit {per_device} x {accumulation} x {num_workers}")
    pieces = [
        rows[start : start + per_device] for start in range(0, per_device * accumulation * num_workers, per_device)
    ]
    return [[pieces[turn * num_workers + worker] for turn in range(accumulation)] for worker in range(num_workers)]


def shares(count: int, per_device: int, num_workers: int) -> Iterator[tuple[int, int]]:
    """Cut range(count) for evaluation into rounds: every worker gets one (start, stop) of the same round, maybe empty.

    Yields:
        (start, stop) for worker 0, 1, ... of the first round, then of the second, and so on.
    """
    per_round = per_device * num_workers
    for start in range(0, count, per_round):
        for worker in range(num_workers):
            low = min(start + worker * per_device, count)
            yield low, min(low + per_device, count)
