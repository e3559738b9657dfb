"""Decides which samples share a row: a fixed shuffle, then best fit within windows of samples. Pure; numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A window has at least this many samples and makes at least this many rows, because its last row is seldom full.
WINDOW_SAMPLES, WINDOW_ROWS = 4096, 512


def shuffle(n: int, seed_key: str) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n) that depends only on `seed_key`.

    It sorts by Philox's raw stream, which is stable between versions of NumPy, whereas its `permutation` is not.
    """
    key = np.frombuffer(hashlib.blake2b(seed_key.encode(), digest_size=16).digest(), dtype="<u8")
    drawn = np.random.Philox(key=key).random_raw(n)
    return np.argsort(drawn, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """The samples of each row."""

    samples: npt.NDArray[np.int64]  # positions of all samples, row by row
    ends: npt.NDArray[np.int64]  # (rows,), number of samples in all rows up to and including each

    def __len__(self) -> int:
        return len(self.ends)


def pack(lengths: Sequence[int] | npt.NDArray[np.integer], seq_len: int) -> Rows:
    """Put samples into rows of at most `seq_len` tokens, every sample once.

    Within a window of samples, each row takes the longest sample, then repeatedly the longest that fits, and at last
    the pair that fills it best. Rows are in the order of their longest samples, so samples must be shuffled already.

    Args:
        lengths: tokens of each sample, at least 1.

    Raises:
        ValueError: a sample is longer than `seq_len`, or empty.
    """
    whole: npt.NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((whole < 1) | (whole > seq_len))
    if len(wrong):
        raise ValueError(f"sample {wrong[0]} has {whole[wrong[0]]} tokens, but a row holds 1 to {seq_len}")
    samples, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    window = max(WINDOW_SAMPLES, WINDOW_ROWS * seq_len * len(whole) // max(int(whole.sum()), 1))
    for start in range(0, len(whole), window):
        rows = sorted(_rows_of_window(whole[start : start + window], seq_len))
        samples.append(np.concatenate(rows).astype(np.int64) + start)
        counts.append(np.fromiter(map(len, rows), np.int64, len(rows)))
    return Rows(np.concatenate(samples), np.cumsum(np.concatenate(counts)))


def _rows_of_window(lengths: npt.NDArray[np.int64], seq_len: int) -> list[list[int]]:
    """Return rows as positions in `lengths`, with the longest sample of each row first."""
    stock = _Stock(lengths, seq_len)
    rows = []
    while longest := stock.at_most(seq_len):
        row, room = [stock.take(longest)], seq_len - longest
        while room and (length := stock.best_first(room)):
            row.append(stock.take(length))
            room -= length
        rows.append(row)
    return rows


class _Stock:
    """The samples that are not yet in a row, by length."""

    def __init__(self, lengths: npt.NDArray[np.int64], seq_len: int) -> None:
        self._left = np.bincount(lengths, minlength=seq_len + 1)
        self._order = np.argsort(lengths, kind="stable").tolist()  # positions, by length and then in their order
        self._next = (np.cumsum(self._left) - self._left).tolist()  # index in it of the next sample of each length
        self._numbers = np.arange(seq_len + 1)
        self._longest = self._longest_up_to()

    def at_most(self, room: int) -> int:
        """Return the greatest length that fits; 0 if none does."""
        return int(self._longest[room])

    def best_first(self, room: int) -> int:
        """Return the length to take next: the greatest that fits, or the greater one of a pair that fills more."""
        greatest = self.at_most(room)
        if room >= 2 * greatest or room == greatest:
            return greatest  # every pair fits, so the best one contains the greatest; or nothing is left to fill
        one = np.flatnonzero(self._left[: greatest + 1])
        other = self._longest[room - one]
        alone = (other == one) & (self._left[one] < 2)  # a pair of equal lengths needs two samples
        other = np.where(alone, self._longest[np.maximum(other - 1, 0)], other)
        best = int(np.argmax(np.where(other > 0, one + other, 0)))
        pair = (int(one[best]), int(other[best]))
        return max(pair) if pair[1] and sum(pair) > greatest else greatest

    def take(self, length: int) -> int:
        """Take the first sample of this length. There must be one."""
        self._left[length] -= 1
        place = self._next[length]
        self._next[length] = place + 1
        if not self._left[length]:
            self._longest = self._longest_up_to()
        position: int = self._order[place]
        return position

    def _longest_up_to(self) -> npt.NDArray[np.int64]:
        longest: npt.NDArray[np.int64] = np.maximum.accumulate(np.where(self._left > 0, self._numbers, 0))
        return longest


def one_a_row(n: int) -> Rows:
    """Make rows of one sample each, for data that is not packed."""
    return Rows(np.arange(n, dtype=np.int64), np.arange(1, n + 1, dtype=np.int64))
