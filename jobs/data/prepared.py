"""The layout of prepared data: Arrow shards of fixed-size blocks, an index, and a manifest that is written last.

    prepared/<fingerprint of a source>/manifest.json     exists only when everything else does
    prepared/<fingerprint of a source>/rows/shard-00000.arrow, ..., index.arrow
    prepared/<fingerprint of a source>/held_out/...      where a share of it is held out
    prepared/<fingerprint of a source>/bad_rows.jsonl    records that were set aside, with file, line and reason
    prepared/<fingerprint of a job's data>/manifest.json which sources are its `train`, and which its `eval`

Each source is prepared once, whichever jobs use it, and however they mix it with others. A *row* is what the model
sees at one place of a batch: one sample, or several packed ones. A *block* is an Arrow record batch of
`ROWS_PER_BLOCK` rows (the last one of a split may be shorter): the unit that is read at once.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field

from jobs.data.cutting import Cut
from jobs.errors import DataError, StorageError
from jobs.frozen import Frozen
from jobs.storage import files as storage

MANIFEST_VERSION = 2
SOURCE_ID_BITS = 40  # ids of samples are told apart by the number of their source above these bits
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
        ("sample_ids", pa.list_(pa.int64())),  # number of each sample in its source, before the shuffle
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
    """What one split of one source holds."""

    folder: str | None = Field(None, description="Under the directory of all prepared data; else the split's name.")
    rows: int = Field(ge=0)
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    targets: int = Field(ge=0)
    longest_row: int = Field(ge=0)
    rows_per_block: int = ROWS_PER_BLOCK
    blocks_per_shard: int = BLOCKS_PER_SHARD
    shards: tuple[FileEntry, ...]
    index: FileEntry


def _one_or_several(value: object) -> object:
    if isinstance(value, dict):
        return {name: (split,) if isinstance(split, dict | SplitManifest) else split for name, split in value.items()}
    return value


class Manifest(Frozen):
    """What a prepared directory holds, and from what it was made."""

    version: int = MANIFEST_VERSION
    fingerprint: str
    made_from: dict[str, Any] = Field(description="What the fingerprint was taken over.")
    splits: Annotated[dict[str, tuple[SplitManifest, ...]], BeforeValidator(_one_or_several)] = Field(
        description="By name, a part for each source; one alone stands for itself."
    )
    records: int = 0
    bad_rows: int = 0
    cut: Cut | None = Field(None, description="What seq_len has cut, of a source that this release has prepared.")
    pad_token_id: int
    versions: dict[str, str]


def manifest_path(root: str) -> str:
    return storage.join(root, "manifest.json")


def write_manifest(root: str, manifest: Manifest) -> None:
    """Write the marker that makes a prepared directory exist."""
    storage.write_bytes(manifest_path(root), manifest.model_dump_json(indent=1).encode())


def read_manifest(root: str) -> Manifest:
    """The manifest of a prepared directory. Raises DataError (newer, or damaged) and StorageError."""
    content = storage.read_bytes(manifest_path(root))
    try:
        raw = dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise _damaged(root, error) from error
    if raw.get("version", 0) > MANIFEST_VERSION:
        raise DataError(
            f"{root} was prepared by a newer release (manifest version {raw['version']}, this one reads "
            f"{MANIFEST_VERSION}): upgrade Fleetune"
        )
    try:
        return Manifest.model_validate(raw)
    except ValueError as error:  # pydantic's, too
        raise _damaged(root, error) from error


def _damaged(root: str, error: Exception) -> DataError:
    what = str(error).splitlines()[0]
    return DataError(f"{manifest_path(root)} is damaged: {what}. Remove {root}, and prepare again")


@dataclass(frozen=True)
class SplitIndex:
    """Counts of every row, and the ids of its samples."""

    num_tokens: npt.NDArray[np.int32]  # (rows,)
    num_targets: npt.NDArray[np.int32]  # (rows,)
    sample_ids: Any  # ListArray of int64, one list a row


class Section:
    """Random access to the rows that a split has from one source, in bounded memory.

    A block is read into memory, and the last ones are kept. Shards are not mapped: every block that is kept would hold
    its whole shard in the address space, and a shard that is cut off would end the process with SIGBUS.
    """

    def __init__(self, folder: str, number: int, manifest: SplitManifest, cached_blocks: int) -> None:
        self._folder = folder
        self._first_id = number << SOURCE_ID_BITS
        self.manifest = manifest
        self._cached_blocks = cached_blocks
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._blocks: OrderedDict[int, Any] = OrderedDict()
        self._cached_bytes = 0

    def read_index(self) -> SplitIndex:
        """Raises DataError: it is gone or damaged."""
        name = self.manifest.index.name
        with self._as_data_error(name):
            table = pa.ipc.open_file(self._open(name, pa.memory_map)).read_all().combine_chunks()
        ids = table["sample_ids"].chunk(0) if table.num_rows else pa.array([], pa.list_(pa.int64()))
        return SplitIndex(
            num_tokens=table["num_tokens"].to_numpy(),
            num_targets=table["num_targets"].to_numpy(),
            sample_ids=self._numbered(ids),
        )

    def _numbered(self, ids: Any) -> Any:
        """Ids that no other source has; those of the first one are as they are."""
        if not self._first_id:
            return ids
        values = pc.add(ids.flatten(), pa.scalar(self._first_id, pa.int64()))
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(ids).to_numpy(), dtype=np.int32)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

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
        return self._renumbered(_in_order(pieces, places))

    def _renumbered(self, table: Any) -> Any:
        if not self._first_id:
            return table
        place = table.schema.get_field_index("sample_ids")
        return table.set_column(place, "sample_ids", self._numbered(table["sample_ids"].combine_chunks()))

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
            raise DataError(
                f"prepared data is gone or damaged: {path}: {error}. Remove {posixpath.dirname(self._folder)}, and "
                "prepare again"
            ) from error


def _in_order(pieces: list[Any], places: list[npt.NDArray[np.int64]]) -> Any:
    """Tables as one, whose rows stand where `places` says."""
    if len(pieces) == 1:
        return pieces[0].combine_chunks()
    return pa.concat_tables(pieces).take(pa.array(np.argsort(np.concatenate(places)))).combine_chunks()


class Split:
    """Random access to the rows of one split: those of its first source, then those of the next one, and so on."""

    def __init__(self, name: str, sections: tuple[Section, ...]) -> None:
        self.name = name
        self._sections = sections
        self._index: SplitIndex | None = None
        self._starts = np.cumsum([0, *self.rows_of_sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def rows_of_sources(self) -> tuple[int, ...]:
        """How many rows come from each source."""
        return tuple(section.manifest.rows for section in self._sections)

    @property
    def rows_per_block(self) -> int:
        return self._sections[0].manifest.rows_per_block

    @property
    def index(self) -> SplitIndex:
        """Counts of every row; read once.

        Local files of a split with one source are mapped: some 20 bytes a row, which a host's workers share. With
        several sources it is a copy.

        Raises:
            DataError: it is gone or damaged.
        """
        if self._index is None:
            found = [section.read_index() for section in self._sections]
            self._index = found[0] if len(found) == 1 else _joined(found)
        return self._index

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Any:
        """The rows with these numbers, in this order.

        Returns:
            pyarrow.Table with ROW_SCHEMA and len(rows) rows.

        Raises:
            DataError: a shard is gone or damaged.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(self._sections) == 1:
            return self._sections[0].read_rows(rows)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        pieces, places = [], []
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            pieces.append(self._sections[owner].read_rows(rows[here] - self._starts[owner]))
            places.append(here)
        return _in_order(pieces, places) if pieces else ROW_SCHEMA.empty_table()


def _joined(indexes: list[SplitIndex]) -> SplitIndex:
    return SplitIndex(
        num_tokens=np.concatenate([one.num_tokens for one in indexes]),
        num_targets=np.concatenate([one.num_targets for one in indexes]),
        sample_ids=pa.concat_arrays([one.sample_ids for one in indexes]),
    )


@dataclass(frozen=True)
class Prepared:
    """A prepared directory, opened: of a job's data, or of one source."""

    root: str
    manifest: Manifest

    @classmethod
    def open(cls, root: str) -> Prepared:
        return cls(root, read_manifest(root))

    @classmethod
    def find(cls, root: str) -> Prepared | None:
        """The prepared directory, or None where there is none or it is not finished."""
        return cls.open(root) if storage.exists(manifest_path(root)) else None

    def missing_files(self) -> list[str]:
        """Files of the splits that are gone, or not as long as the manifest says. Raises StorageError."""
        wrong = []
        for name, parts in self.manifest.splits.items():
            for part in parts:
                folder = self._folder(name, part)
                there = set(storage.list_names(folder))
                for entry in (*part.shards, part.index):
                    path = storage.join(folder, entry.name)
                    if entry.name not in there or storage.size(path) != entry.bytes:
                        wrong.append(path)
        return wrong

    def has(self, split: str) -> bool:
        return split in self.manifest.splits

    def split(self, name: str, cached_blocks: int = 64) -> Split:
        """Open a split; it keeps up to `cached_blocks` blocks of each source in memory, fewer where they are large."""
        sections = (
            Section(self._folder(name, manifest), number, manifest, cached_blocks)
            for number, manifest in enumerate(self.manifest.splits[name])
        )
        return Split(name, tuple(sections))

    def _folder(self, split: str, manifest: SplitManifest) -> str:
        if manifest.folder is None:
            return storage.join(self.root, split)
        return storage.join(self.root.rstrip("/").rpartition("/")[0], manifest.folder)


@contextlib.contextmanager
def read_buffer(path: str) -> Iterator[Any]:
    """A file as pyarrow reads it, whole in memory unless it is local.

    Raises:
        StorageError: it cannot be read.
        DataError: what is in it is damaged.
    """
    local = storage.is_local(path)
    try:
        with pa.memory_map(storage.local_path(path)) if local else pa.BufferReader(storage.read_bytes(path)) as source:
            yield source
    except FileNotFoundError as error:
        raise StorageError(f"cannot read {path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged: {error}. Remove it, and prepare again.") from error
