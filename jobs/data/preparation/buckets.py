"""The middle stage of an external shuffle: values are appended to buckets, and each bucket is read back whole.

The disk sees only sequential reads and writes, so a slow disk is fast enough. Values that fit into memory never reach
the disk.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from jobs.data.preparation.shard_writer import scratch_errors

Ints = npt.NDArray[np.int32]
HELD_BYTES = 32 * 2**20
_LONG = 32  # average values of a slice from which on copying slices one by one is faster


class Buckets:
    """Sequences of int32, one for each bucket. At most `held_bytes` of all values are in memory."""

    def __init__(self, folder: str, name: str, held_bytes: int = HELD_BYTES) -> None:
        self._prefix = os.path.join(folder, name)
        self._folder = folder
        self._held: dict[int, list[Ints]] = {}
        self._bytes, self._most = 0, held_bytes

    def put(self, bucket: int, values: Ints) -> None:
        """Append values to a bucket. Raises StorageError."""
        self._held.setdefault(bucket, []).append(values)
        self._bytes += values.nbytes
        if self._bytes > self._most:
            self._spill()

    def take(self, bucket: int) -> Ints:
        """Return all values of a bucket, in order, and empty it. Raises StorageError."""
        pieces = self._held.pop(bucket, [])
        self._bytes -= sum(piece.nbytes for piece in pieces)
        path = self._path(bucket)
        if os.path.exists(path):
            with scratch_errors(self._folder):
                pieces.insert(0, np.fromfile(path, dtype=np.int32))
                os.unlink(path)
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def _spill(self) -> None:
        with scratch_errors(self._folder):
            for bucket, pieces in self._held.items():
                with open(self._path(bucket), "ab") as file:
                    for piece in pieces:
                        file.write(np.ascontiguousarray(piece).data)
        self._held, self._bytes = {}, 0

    def _path(self, bucket: int) -> str:
        return f"{self._prefix}-{bucket:06d}"


def gathered(values: Ints, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Ints:
    """Concatenate values[starts[0]:starts[0] + lengths[0]], and so on."""
    total = int(lengths.sum())
    if total > _LONG * len(lengths):  # slicing is cheaper than computing the index of every value
        slices = [values[a:b] for a, b in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
        return np.concatenate([values[:0], *slices])
    shifts = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return values[shifts + np.arange(total)]
