"""Which samples share a row: a fixed shuffle, then best fit among some thousand samples at a time. Pure; numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# So many samples are packed together, and so many that they make some hundred rows: each window's last row is not full.
WINDOW_SAMPLES, WINDOW_ROWS = 4096, 512


def shuffle(n: int, seed_key: str) -> npt.NDArray[np.int64]:
    """A permutation of range(n) that depends on `seed_key` only.

    The samples are sorted by Philox's raw stream, which NumPy keeps stable between versions; its `permutation` is not.
    """
    key = np.frombuffer(hashlib.blake2b(seed_key.encode(), digest_size=16).digest(), dtype="<u8")
    drawn = np.random.Philox(key=key).random_raw(n)
    return np.argsort(drawn, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """Which samples each row holds."""

    samples: npt.NDArray[np.int64]  # positions of all samples, row by row
    ends: npt.NDArray[np.int64]  # (rows,), how many of them are in the rows up to each one

    def __len__(self) -> int:
        return len(self.ends)


def pack(lengths: Sequence[int] | npt.NDArray[np.integer], seq_len: int) -> Rows:
    """Put samples into rows of at most `seq_len` tokens, every sample once.

    Of some thousand samples at a time, each row takes the longest, then the longest that fits, and as its last two the
    pair that fills it best. A row stands where its longest sample stood, so a shuffle stays one.

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
    """Rows as positions in `lengths`, the longest sample of each first."""
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
    """Samples that are not in a row yet, by length."""

    def __init__(self, lengths: npt.NDArray[np.int64], seq_len: int) -> None:
        self._left = np.bincount(lengths, minlength=seq_len + 1)
        self._order = np.argsort(lengths, kind="stable").tolist()  # positions, by length and then as they came
        self._next = (np.cumsum(self._left) - self._left).tolist()  # where in it the next one of each length is
        self._numbers = np.arange(seq_len + 1)
        self._longest = self._longest_up_to()

    def at_most(self, room: int) -> int:
        """The greatest length that fits; 0 if none does."""
        return int(self._longest[room])

    def best_first(self, room: int) -> int:
        """The length to take next: the greatest that fits, or the greater one of a pair that leaves less room."""
        greatest = self.at_most(room)
        if room >= 2 * greatest or room == greatest:
            return greatest  # no pair fills more than two of these, or there is nothing to fill
        one = np.flatnonzero(self._left[: greatest + 1])
        other = self._longest[room - one]
        alone = (other == one) & (self._left[one] < 2)  # a pair with itself, of which there is only one
        other = np.where(alone, self._longest[np.maximum(other - 1, 0)], other)
        best = int(np.argmax(np.where(other > 0, one + other, 0)))
        pair = (int(one[best]), int(other[best]))
        return max(pair) if pair[1] and sum(pair) > greatest else greatest

    def take(self, length: int) -> int:
        """A sample of this length, of which there must be one; the first that came."""
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
    """Rows of one sample each, for data that is not packed."""
    return Rows(np.arange(n, dtype=np.int64), np.arange(1, n + 1, dtype=np.int64))
