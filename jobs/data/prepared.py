"""The layout of prepared data: Arrow shards of fixed-size blocks, an index, and a manifest that is written last.

    prepared/<fingerprint>/manifest.json     exists only when everything else does
    prepared/<fingerprint>/train/shard-00000.arrow, ..., index.arrow
    prepared/<fingerprint>/eval/...
    prepared/<fingerprint>/bad_rows.jsonl    records that were set aside, with file, line and reason

A *row* is what the model sees at one place of a batch: one sample, or several packed ones. A *block* is an Arrow record
batch of `ROWS_PER_BLOCK` rows (the last one of a split may be shorter): the unit that is read at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from jobs import storage
from jobs.errors import DataError
from jobs.spec import Frozen

MANIFEST_VERSION = 1
ROWS_PER_BLOCK = 64
BLOCKS_PER_SHARD = 256
IGNORE_INDEX = -100
_HELD_BYTES = 512 * 2**20  # most of a split's blocks that are kept, and most that are in hand beside them
_OPEN_SHARDS = 16

ROW_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        # causal-lm: as long as input_ids, not shifted, IGNORE_INDEX where the token is no target (always so at the
        # first token of a sample, which nothing predicts). Classification: one class id.
        ("labels", pa.list_(pa.int32())),
        ("lengths", pa.list_(pa.int32())),  # tokens of each sample in the row; they add up to len(input_ids)
        ("sample_ids", pa.list_(pa.int64())),  # number of each sample in the source, before the shuffle
    ]
)
INDEX_SCHEMA = pa.schema(
    [("num_tokens", pa.int32()), ("num_targets", pa.int32()), ("sample_ids", pa.list_(pa.int64()))]
)


class FileEntry(Frozen):
    """One file of a split."""

    name: str
    bytes: int
    sha256: str


class SplitManifest(Frozen):
    """What one split holds."""

    rows: int = Field(ge=0)
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    targets: int = Field(ge=0)
    longest_row: int = Field(ge=0)
    rows_per_block: int = ROWS_PER_BLOCK
    blocks_per_shard: int = BLOCKS_PER_SHARD
    shards: tuple[FileEntry, ...]
    index: FileEntry


class Manifest(Frozen):
    """What a prepared directory holds, and from what it was made."""

    version: int = MANIFEST_VERSION
    fingerprint: str
    made_from: dict[str, Any] = Field(description="What the fingerprint was taken over.")
    splits: dict[str, SplitManifest]
    bad_rows: int = 0
    pad_token_id: int
    versions: dict[str, str]


def count_targets(labels: npt.NDArray[np.int32], causal: bool) -> int:
    """Number of targets in one row: 1 for classification, else the labels that are not IGNORE_INDEX."""
    return int(np.count_nonzero(labels != IGNORE_INDEX)) if causal else 1


class SplitWriter:
    """Writes rows, in the order given, as shards. One block is in memory at a time."""

    def __init__(self, root: str, split: str, causal: bool) -> None:
        self._folder = storage.join(root, split)
        self._causal = causal
        self._scratch = tempfile.TemporaryDirectory(prefix="fleetune-prepare-")
        self._pending: list[dict[str, Any]] = []
        self._shards: list[FileEntry] = []
        self._open: tuple[str, Any] | None = None
        self._blocks_in_shard = 0
        self._num_tokens: list[int] = []
        self._num_targets: list[int] = []
        self._sample_ids: list[list[int]] = []

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; each is a dict with the columns of ROW_SCHEMA."""
        for row in rows:
            self._num_tokens.append(len(row["input_ids"]))
            self._num_targets.append(count_targets(np.asarray(row["labels"], dtype=np.int32), self._causal))
            self._sample_ids.append(list(row["sample_ids"]))
            self._pending.append(row)
            if len(self._pending) == ROWS_PER_BLOCK:
                self._write_block()

    def close(self) -> SplitManifest:
        """Write what is pending and the index; the split's part of the manifest."""
        if self._pending:
            self._write_block()
        self._finish_shard()
        index = pa.table(
            {"num_tokens": self._num_tokens, "num_targets": self._num_targets, "sample_ids": self._sample_ids},
            schema=INDEX_SCHEMA,
        )
        local = os.path.join(self._scratch.name, "index.arrow")
        with pa.OSFile(local, "wb") as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            writer.write_table(index)
        entry = self._upload(local, "index.arrow")
        self._scratch.cleanup()
        return SplitManifest(
            rows=len(self._num_tokens),
            samples=sum(map(len, self._sample_ids)),
            tokens=sum(self._num_tokens),
            targets=sum(self._num_targets),
            longest_row=max(self._num_tokens, default=0),
            shards=tuple(self._shards),
            index=entry,
        )

    def _write_block(self) -> None:
        if self._open is None:
            local = os.path.join(self._scratch.name, f"shard-{len(self._shards):05d}.arrow")
            self._open = (local, pa.ipc.new_file(local, ROW_SCHEMA))
        self._open[1].write_batch(pa.RecordBatch.from_pylist(self._pending, schema=ROW_SCHEMA))
        self._pending = []
        self._blocks_in_shard += 1
        if self._blocks_in_shard == BLOCKS_PER_SHARD:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._open is None:
            return
        local, writer = self._open
        writer.close()
        self._shards.append(self._upload(local, os.path.basename(local)))
        self._open, self._blocks_in_shard = None, 0

    def _upload(self, local: str, name: str) -> FileEntry:
        digest, size = _sha256(local), os.path.getsize(local)
        storage.put_file(local, storage.join(self._folder, name))
        return FileEntry(name=name, bytes=size, sha256=digest)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(root: str) -> str:
    return storage.join(root, "manifest.json")


def write_manifest(root: str, manifest: Manifest) -> None:
    """Write the marker that makes a prepared directory exist."""
    storage.write_bytes(manifest_path(root), manifest.model_dump_json(indent=1).encode())


def read_manifest(root: str) -> Manifest:
    """The manifest of a prepared directory.

    Raises:
        DataError: it was written by a newer release, or is not a manifest.
        StorageError: there is none.
    """
    raw = json.loads(storage.read_bytes(manifest_path(root)))
    if raw.get("version", 0) > MANIFEST_VERSION:
        raise DataError(
            f"{root} was prepared by a newer release (manifest version {raw['version']}, this one reads "
            f"{MANIFEST_VERSION}): upgrade Fleetune"
        )
    return Manifest.model_validate(raw)


@dataclass(frozen=True)
class SplitIndex:
    """Counts of every row, and the ids of its samples."""

    num_tokens: npt.NDArray[np.int32]  # (rows,)
    num_targets: npt.NDArray[np.int32]  # (rows,)
    sample_ids: Any  # ListArray of int64, one list a row


class Split:
    """Random access to the rows of one split, in bounded memory.

    A block is read into memory, and the last ones are kept. Shards are not mapped: every block that is kept would hold
    its whole shard in the address space, and a shard that is cut off would end the process with SIGBUS.
    """

    def __init__(self, root: str, name: str, manifest: SplitManifest, cached_blocks: int = 64) -> None:
        self._folder = storage.join(root, name)
        self.name = name
        self.manifest = manifest
        self._cached_blocks = cached_blocks
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._blocks: OrderedDict[int, Any] = OrderedDict()
        self._cached_bytes = 0
        self._index: SplitIndex | None = None

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def index(self) -> SplitIndex:
        """Counts of every row; read once. Local files are mapped: some 20 bytes a row, which a host's workers share.

        Raises:
            DataError: it is gone or damaged.
        """
        if self._index is None:
            name = self.manifest.index.name
            with self._as_data_error(name):
                table = pa.ipc.open_file(self._open(name, pa.memory_map)).read_all().combine_chunks()
            self._index = SplitIndex(
                num_tokens=table["num_tokens"].to_numpy(),
                num_targets=table["num_targets"].to_numpy(),
                sample_ids=table["sample_ids"].chunk(0) if table.num_rows else pa.array([], pa.list_(pa.int64())),
            )
        return self._index

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Any:
        """The rows with these numbers, in this order.

        Returns:
            pyarrow.Table with ROW_SCHEMA and len(rows) rows.

        Raises:
            DataError: a shard is gone or damaged.
        """
        blocks, inside = np.divmod(np.asarray(rows, dtype=np.int64), self.manifest.rows_per_block)
        needed, which = np.unique(blocks, return_inverse=True)
        if not len(needed):
            return ROW_SCHEMA.empty_table()
        pieces, places = [], []
        for first, batches in self._in_hand(needed):
            here = np.flatnonzero((which >= first) & (which < first + len(batches)))
            starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
            table = pa.Table.from_batches(batches, schema=ROW_SCHEMA)
            pieces.append(table.take(pa.array(starts[which[here] - first] + inside[here])))
            places.append(here)
        if len(pieces) == 1:
            return pieces[0].combine_chunks()
        return pa.concat_tables(pieces).take(pa.array(np.argsort(np.concatenate(places)))).combine_chunks()

    def _in_hand(self, needed: npt.NDArray[np.int64]) -> Iterator[tuple[int, list[Any]]]:
        """Read blocks, as many at a time as `_HELD_BYTES` has room for: how many were given before, and these."""
        first, size = 0, 0
        batches: list[Any] = []
        for number, block in enumerate(needed):
            batch = self._block(int(block))
            if batches and size + batch.nbytes > _HELD_BYTES:
                yield first, batches
                first, size, batches = number, 0, []
            batches.append(batch)
            size += batch.nbytes
        if batches:
            yield first, batches

    def _block(self, block: int) -> Any:
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        shard, inside = divmod(block, self.manifest.blocks_per_shard)
        with self._as_data_error(self.manifest.shards[shard].name):
            batch = self._shard(shard).get_batch(inside)
        self._blocks[block] = batch
        self._cached_bytes += batch.nbytes
        while self._blocks and (len(self._blocks) > self._cached_blocks or self._cached_bytes > _HELD_BYTES):
            self._cached_bytes -= self._blocks.popitem(last=False)[1].nbytes
        return batch

    def _shard(self, shard: int) -> Any:
        if shard in self._readers:
            self._readers.move_to_end(shard)
        else:
            self._readers[shard] = pa.ipc.open_file(self._open(self.manifest.shards[shard].name, pa.OSFile))
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        return self._readers[shard]

    def _open(self, name: str, local: Callable[..., Any]) -> Any:
        """A file of the split as pyarrow reads it: by `local` where it is one, else through fsspec."""
        path = storage.join(self._folder, name)
        if storage.is_local(path):
            return local(storage.local_path(path), "rb")
        fs, inner = storage.filesystem(path)
        return pa.PythonFile(fs.open(inner, "rb"), mode="r")

    @contextlib.contextmanager
    def _as_data_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            path = storage.join(self._folder, name)
            raise DataError(f"prepared data is gone or damaged: {path}: {error}. Prepare it again.") from error


@dataclass(frozen=True)
class Prepared:
    """A prepared directory, opened."""

    root: str
    manifest: Manifest

    @classmethod
    def open(cls, root: str) -> Prepared:
        return cls(root, read_manifest(root))

    @classmethod
    def find(cls, root: str) -> Prepared | None:
        """The prepared directory, or None where there is none or it is not finished."""
        return cls.open(root) if storage.exists(manifest_path(root)) else None

    def has(self, split: str) -> bool:
        return split in self.manifest.splits

    def split(self, name: str, cached_blocks: int = 64) -> Split:
        """Open a split; it keeps up to `cached_blocks` blocks in memory, fewer where they are large."""
        return Split(self.root, name, self.manifest.splits[name], cached_blocks)
