"""Which samples share a row: a fixed shuffle, then best fit over a bounded number of open rows. Pure; numpy only."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# More open rows pack denser and cost more per sample; beyond 256 the density of real data no longer changes.
OPEN_ROWS = 256


def shuffle(n: int, seed_key: str) -> npt.NDArray[np.int64]:
    """A permutation of range(n) that depends on `seed_key` only.

    The samples are sorted by Philox's raw stream, which NumPy keeps stable between versions; its `permutation` is not.
    """
    key = np.frombuffer(hashlib.blake2b(seed_key.encode(), digest_size=16).digest(), dtype="<u8")
    drawn = np.random.Philox(key=key).random_raw(n)
    return np.argsort(drawn, kind="stable").astype(np.int64)


def pack(lengths: Sequence[int] | npt.NDArray[np.integer], seq_len: int) -> list[tuple[int, ...]]:
    """Put samples into rows of at most `seq_len` tokens; every sample once, rows in the order of their first sample.

    Each sample goes to the open row that it fills best. With OPEN_ROWS rows open, the fullest one is closed.

    Args:
        lengths: tokens of each sample, at least 1.

    Returns:
        Positions in `lengths`, one tuple a row.

    Raises:
        ValueError: a sample is longer than `seq_len`, or empty.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, number of the row) of every open row, sorted
    for sample, length in enumerate(np.asarray(lengths).tolist()):
        if not 0 < length <= seq_len:
            raise ValueError(f"sample {sample} has {length} tokens, but a row holds 1 to {seq_len}")
        place = bisect.bisect_left(room, (length, -1))
        free, row = room.pop(place) if place < len(room) else (seq_len, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(sample)
        if free > length:
            bisect.insort(room, (free - length, row))
        if len(room) > OPEN_ROWS:
            room.pop(0)
    return [tuple(row) for row in rows]


def one_a_row(n: int) -> list[tuple[int, ...]]:
    """Rows of one sample each, for data that is not packed."""
    return [(sample,) for sample in range(n)]
