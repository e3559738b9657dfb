"""Turns parts into shards: shuffles once, packs, and moves every sample to its row, in bounded memory.

About 60 bytes are held for each sample: counts, content hash and destination. Tokens are distributed from the parts, in
source order, to buckets of consecutive rows. Each bucket is then written in the order of its rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.data.preparation.packing import Rows, one_a_row, pack, shuffle
from jobs.data.preparation.parts import PartIndex, read_tokens
from jobs.data.preparation.shard_writer import ShardWriter, scratch_errors
from jobs.data.prepared import INDEX_SCHEMA, ROW_SCHEMA, ROWS_PER_BLOCK, SplitManifest

Ints = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
HELD_BYTES = 32 * 2**20
BUCKET_TOKENS = 2**21  # 16 MiB of tokens and labels; blocks are never divided
_LONG = 32  # average values of a slice from which on copying slices one by one is faster


class Buckets:
    """The middle stage of an external shuffle: values are appended to buckets, and each bucket is read back whole.

    The disk sees only sequential reads and writes, so a slow disk is fast enough. At most HELD_BYTES are in memory, and
    values that fit there never reach the disk.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._prefix = os.path.join(folder, name)
        self._folder = folder
        self._held: dict[int, list[Ints]] = {}
        self._bytes = 0

    def put(self, bucket: int, values: Ints) -> None:
        """Append values to a bucket. Raises StorageError."""
        self._held.setdefault(bucket, []).append(values)
        self._bytes += values.nbytes
        if self._bytes > HELD_BYTES:
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


def gathered(values: Ints, lengths: Numbers, order: Numbers) -> Ints:
    """Bring consecutive pieces of `values` into an order. `lengths`: of all pieces; `order`: numbers of pieces."""
    starts, lengths = (np.cumsum(lengths) - lengths)[order], lengths[order]
    total = int(lengths.sum())
    if total > _LONG * len(lengths):  # slicing is cheaper than computing the index of every value
        slices = [values[a:b] for a, b in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
        return np.concatenate([values[:0], *slices])
    shifts = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return values[shifts + np.arange(total)]


@dataclass(frozen=True)
class Samples:
    """All samples of a source in source order, without their tokens. Each array has one element per sample."""

    content: npt.NDArray[np.uint64]  # hash; equal for samples with equal content
    num_tokens: Ints
    num_targets: Ints
    causal: bool  # whether labels are as long as tokens; if not, each sample has one class

    @classmethod
    def of(cls, parts: Iterable[PartIndex], causal: bool) -> Samples:
        parts = list(parts)
        return cls(
            np.concatenate([np.zeros(0, np.uint64), *(part.content for part in parts)]),
            np.concatenate([np.zeros(0, np.int32), *(part.num_tokens for part in parts)]),
            np.concatenate([np.zeros(0, np.int32), *(part.num_targets for part in parts)]),
            causal,
        )

    def __len__(self) -> int:
        return len(self.content)

    def num_labels(self, samples: Numbers) -> Numbers:
        return self.num_tokens[samples].astype(np.int64) if self.causal else np.ones(len(samples), np.int64)


@dataclass(frozen=True)
class SplitPlan:
    """The samples of each row of one split, decided before any token is moved."""

    name: str
    samples: Numbers  # numbers of samples in their source, row by row
    ends: Numbers  # (rows,), number of samples in all rows up to and including each

    @classmethod
    def of(cls, name: str, members: Numbers, every: Samples, seed_key: str, pack_to: int | None) -> SplitPlan:
        """Shuffle `members` (numbers of samples) by the key, and pack them to `pack_to` tokens unless it is None."""
        order = members[shuffle(len(members), seed_key)]
        rows: Rows = one_a_row(len(order)) if pack_to is None else pack(every.num_tokens[order], pack_to)
        return cls(name, order[rows.samples], rows.ends)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> Numbers:
        return np.append(0, self.ends[:-1])

    def sums(self, of_samples: npt.NDArray[np.integer]) -> Numbers:
        """Sum one value per sample over the samples of each row."""
        running = np.append(0, np.cumsum(of_samples[self.samples], dtype=np.int64))
        sums: Numbers = running[self.ends] - running[self.starts]
        return sums

    def blocks(self) -> Numbers:
        """Return the number of samples in all blocks up to and including each block."""
        last_rows = np.minimum(np.arange(ROWS_PER_BLOCK, len(self) + ROWS_PER_BLOCK, ROWS_PER_BLOCK), len(self)) - 1
        ends: Numbers = self.ends[last_rows]
        return ends


@dataclass(frozen=True)
class _Bucket:
    """Consecutive blocks of a split, as a range of places in `SplitPlan.samples`."""

    block_ends: Numbers
    start: int

    @property
    def stop(self) -> int:
        return int(self.block_ends[-1])


def write_splits(root: str, parts: list[PartIndex], every: Samples, plans: list[SplitPlan]) -> Iterator[SplitManifest]:
    """Write all splits of a source. Yields the manifest of each split once its files are complete.

    Raises:
        StorageError: the storage or the local disk is full or does not answer. Complete files are kept.
        DataError: a part is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="fleetune-prepare-") as scratch:
        writers = [ShardWriter(root, plan.name, scratch) for plan in plans]
        buckets = [
            list(_buckets(plan, every, min(writer.rows_kept, len(plan))))
            for plan, writer in zip(plans, writers, strict=True)
        ]
        tokens, labels = Buckets(scratch, "tokens"), Buckets(scratch, "labels")
        _deal(root, parts, every, _owners(plans, buckets, len(every)), tokens, labels)
        first = 0
        for plan, writer, of_split in zip(plans, writers, buckets, strict=True):
            for number, bucket in enumerate(of_split, start=first):
                for batch in _blocks_of(plan, bucket, every, tokens.take(number), labels.take(number)):
                    writer.write_block(batch)
            first += len(of_split)
            yield _closed(plan, writer, every, _largest_token(parts))


def _buckets(plan: SplitPlan, every: Samples, rows_kept: int) -> Iterator[_Bucket]:
    """Divide the rows of a split that are not yet written into buckets of about BUCKET_TOKENS tokens."""
    ends = plan.blocks()
    kept = rows_kept // ROWS_PER_BLOCK if rows_kept < len(plan) else len(ends)
    start = int(ends[kept - 1]) if kept else 0
    running = np.cumsum(every.num_tokens[plan.samples], dtype=np.int64)
    before = int(running[start - 1]) if start else 0
    numbers = np.maximum(running[ends[kept:] - 1] - before - 1, 0) // BUCKET_TOKENS
    for number in np.unique(numbers):
        block_ends = ends[kept:][numbers == number]
        yield _Bucket(block_ends, start)
        start = int(block_ends[-1])


def _owners(plans: list[SplitPlan], buckets: list[list[_Bucket]], count: int) -> Ints:
    """Return (samples,) the number of the bucket for each sample; -1 if the sample is written already."""
    owners = np.full(count, -1, dtype=np.int32)
    every = ((plan, bucket) for plan, of_split in zip(plans, buckets, strict=True) for bucket in of_split)
    for number, (plan, bucket) in enumerate(every):
        owners[plan.samples[bucket.start : bucket.stop]] = number
    return owners


def _deal(root: str, parts: list[PartIndex], every: Samples, owners: Ints, tokens: Buckets, labels: Buckets) -> None:
    """Distribute the tokens of every part to buckets. Within a bucket, samples stay in source order."""
    first = 0
    for part in parts:
        numbers = np.arange(first, first + len(part.num_tokens))
        first += len(numbers)
        order = np.argsort(owners[numbers], kind="stable")
        order = order[owners[numbers[order]] >= 0]
        if not len(order):
            continue
        flat_tokens, flat_labels = read_tokens(root, part.name)
        named, counts = np.unique(owners[numbers[order]], return_counts=True)
        for flat, lengths, buckets in (
            (flat_tokens, every.num_tokens[numbers].astype(np.int64), tokens),
            (flat_labels, every.num_labels(numbers), labels),
        ):
            sorted_values = gathered(flat, lengths, order)
            cuts = np.cumsum(lengths[order])[np.cumsum(counts) - 1]
            for bucket, piece in zip(named.tolist(), np.split(sorted_values, cuts[:-1]), strict=True):
                buckets.put(bucket, piece.copy())  # a copy, because a view would keep the whole part in memory


def _blocks_of(plan: SplitPlan, bucket: _Bucket, every: Samples, tokens: Ints, labels: Ints) -> Iterator[Any]:
    """Yield the blocks of a bucket as record batches, given its values in source order."""
    samples = plan.samples[bucket.start : bucket.stop]
    there = np.sort(samples)
    places = np.searchsorted(there, samples)
    lengths = every.num_tokens[there].astype(np.int64)
    num_labels = every.num_labels(there)
    tokens = gathered(tokens, lengths, places)
    labels = gathered(labels, num_labels, places)
    token_ends, label_ends = (np.append(0, np.cumsum(each[places])) for each in (lengths, num_labels))
    start = bucket.start
    for stop in bucket.block_ends.tolist():
        rows = plan.ends[np.searchsorted(plan.ends, start, side="right") : np.searchsorted(plan.ends, stop) + 1]
        ends = np.concatenate([[start], rows]) - bucket.start  # ends of rows, counted in samples of the bucket
        yield pa.RecordBatch.from_arrays(
            [
                _lists(tokens, token_ends[ends]),
                _lists(labels, label_ends[ends]),
                _lists(lengths[places].astype(np.int32), ends),
                _lists(samples, ends),
            ],
            schema=ROW_SCHEMA,
        )
        start = stop


def _lists(values: npt.NDArray[np.integer], ends: Numbers) -> pa.ListArray:
    """Make lists of values[ends[0]:ends[1]], values[ends[1]:ends[2]], and so on."""
    offsets = pa.array((ends - ends[0]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values[ends[0] : ends[-1]]))


def _largest_token(parts: Iterable[PartIndex]) -> int | None:
    found = [part.largest_token for part in parts]
    return None if None in found else max(filter(None, found), default=0)


def _closed(plan: SplitPlan, writer: ShardWriter, every: Samples, largest_token: int | None) -> SplitManifest:
    tokens, targets = plan.sums(every.num_tokens), plan.sums(every.num_targets)
    ids = _lists(plan.samples, np.append(0, plan.ends))
    index = pa.table([pa.array(tokens.astype(np.int32)), pa.array(targets.astype(np.int32)), ids], schema=INDEX_SCHEMA)
    entry = writer.close(index)
    return SplitManifest(
        rows=len(plan),
        samples=len(plan.samples),
        tokens=int(tokens.sum()),
        targets=int(targets.sum()),
        longest_row=int(tokens.max(initial=0)),
        largest_token=largest_token,
        shards=tuple(writer.shards),
        index=entry,
    )
