"""The layout of prepared data: Arrow shards of fixed-size blocks, an index, and a manifest, which is written last.

    prepared/<fingerprint of a source>/manifest.json     exists only if everything else is complete
    prepared/<fingerprint of a source>/rows/shard-00000.arrow, ..., index.arrow
    prepared/<fingerprint of a source>/held_out/...      only if a share of the source is held out
    prepared/<fingerprint of a source>/bad_rows.jsonl    records that were set aside, with file, line and reason
    prepared/<fingerprint of a job's data>/manifest.json which sources are the job's `train`, and which its `eval`

Each source is prepared once for all jobs that use it, however they mix it with others. A *row* is what the model
sees as one sequence: one sample, or several packed ones. A *block* is an Arrow record batch of
`ROWS_PER_BLOCK` rows (the last one of a split may be shorter). Reading always reads whole blocks.
"""

from __future__ import annotations

import contextlib
import functools
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

from cluster.errors import DataError, StorageError
from jobs.data.cutting import Cut
from jobs.frozen import Frozen
from jobs.run.paths import PREPARED_MANIFEST
from jobs.storage import files as storage
from jobs.storage.versioned import Damaged, parse_versioned

MANIFEST_VERSION = 2
SOURCE_ID_BITS = 40  # the bits of a sample's id above these hold the number of its source
ROWS_PER_BLOCK = 64
BLOCKS_PER_SHARD = 256
IGNORE_INDEX = -100
_HELD_BYTES = 512 * 2**20  # bound on the cached blocks of a split, and on the blocks being read beside them
_OPEN_SHARDS = 16

ROW_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        # causal-lm: as long as input_ids, not shifted, IGNORE_INDEX where the token is not a target. That includes the
        # first token of a sample, which nothing predicts. Classification: one class id.
        ("labels", pa.list_(pa.int32())),
        ("lengths", pa.list_(pa.int32())),  # tokens of each sample in the row; their sum is len(input_ids)
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
    """The content of one split of one source."""

    folder: str | None = Field(None, description="Path under the directory of all prepared data; default: the split.")
    rows: int = Field(ge=0)
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    targets: int = Field(ge=0)
    longest_row: int = Field(ge=0)
    largest_token: int | None = Field(None, ge=0, description="Of the whole source; not in older releases.")
    rows_per_block: int = ROWS_PER_BLOCK
    blocks_per_shard: int = BLOCKS_PER_SHARD
    shards: tuple[FileEntry, ...]
    index: FileEntry


def _one_or_several(value: object) -> object:
    if isinstance(value, dict):
        return {name: (split,) if isinstance(split, dict | SplitManifest) else split for name, split in value.items()}
    return value


class Manifest(Frozen):
    """The content of a prepared directory, and what it was made from."""

    version: int = MANIFEST_VERSION
    fingerprint: str
    made_from: dict[str, Any] = Field(description="The values of which the fingerprint is a digest.")
    splits: Annotated[dict[str, tuple[SplitManifest, ...]], BeforeValidator(_one_or_several)] = Field(
        description="Parts of each split by name, one for each source; a single part may stand without a list."
    )
    records: int = 0
    bad_rows: int = 0
    cut: Cut | None = Field(None, description="What seq_len truncated; only for a source, and not in older releases.")
    pad_token_id: int
    versions: dict[str, str]


def manifest_path(root: str) -> str:
    return storage.join(root, PREPARED_MANIFEST)


def write_manifest(root: str, manifest: Manifest) -> None:
    """Write the marker that makes a prepared directory exist."""
    storage.write_bytes(manifest_path(root), manifest.model_dump_json(indent=1).encode())


def read_manifest(root: str) -> Manifest:
    """Read the manifest of a prepared directory. Raises DataError if it is newer or damaged, or StorageError."""
    path = manifest_path(root)
    content = storage.read_bytes(path)
    try:
        return parse_versioned(content, path, MANIFEST_VERSION, Manifest.model_validate)
    except Damaged as error:
        raise DataError(f"{error}. Remove {root}, and prepare the data again") from error
    except StorageError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True)
class SplitIndex:
    """Counts of every row, and the ids of its samples."""

    num_tokens: npt.NDArray[np.int32]  # (rows,)
    num_targets: npt.NDArray[np.int32]  # (rows,)
    sample_ids: Any  # ListArray of int64, one list a row


class Section:
    """Random access to one source's rows of a split, in bounded memory.

    A block is read into memory, and recent blocks are cached. Shards are not mapped into memory: every cached block
    would keep its whole shard mapped, and a truncated shard would end the process with SIGBUS.
    """

    def __init__(self, folder: str, number: int, manifest: SplitManifest, cached_blocks: int) -> None:
        self._folder = folder
        self._first_id = number << SOURCE_ID_BITS
        self.manifest = manifest
        self._cached_blocks = cached_blocks
        self._shard = functools.lru_cache(_OPEN_SHARDS)(
            lambda shard: pa.ipc.open_file(_open(folder, manifest.shards[shard].name, pa.OSFile))
        )
        self._blocks: OrderedDict[int, Any] = OrderedDict()
        self._cached_bytes = 0

    def read_index(self) -> SplitIndex:
        """Read the index. Raises DataError if it is missing or damaged."""
        name = self.manifest.index.name
        with self._as_data_error(name):
            table = pa.ipc.open_file(_open(self._folder, name, pa.memory_map)).read_all().combine_chunks()
        ids = table["sample_ids"].chunk(0) if table.num_rows else pa.array([], pa.list_(pa.int64()))
        return SplitIndex(
            num_tokens=table["num_tokens"].to_numpy(),
            num_targets=table["num_targets"].to_numpy(),
            sample_ids=self._numbered(ids),
        )

    def _numbered(self, ids: Any) -> Any:
        """Make ids unique among sources by adding the source's number; those of the first source do not change."""
        if not self._first_id:
            return ids
        values = pc.add(ids.flatten(), pa.scalar(self._first_id, pa.int64()))
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(ids).to_numpy(), dtype=np.int32)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Any:
        """Read rows of this source; see `Split.read_rows`."""
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
        table = _in_order(pieces, places)
        place = table.schema.get_field_index("sample_ids")
        return table.set_column(place, "sample_ids", self._numbered(table["sample_ids"].combine_chunks()))

    def _in_hand(self, needed: npt.NDArray[np.int64]) -> Iterator[tuple[int, list[Any]]]:
        """Read blocks in groups that fit into `_HELD_BYTES`. Yields the number of earlier blocks, and a group."""
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

    @contextlib.contextmanager
    def _as_data_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            path = storage.join(self._folder, name)
            raise DataError(
                f"prepared data is missing or damaged: {path}: {error}. Remove {posixpath.dirname(self._folder)}, and "
                "prepare the data again"
            ) from error


def _open(folder: str, name: str, local: Callable[..., Any]) -> Any:
    """Open a file of a split for pyarrow: with `local` if it is a local file, else through fsspec."""
    path = storage.join(folder, name)
    if storage.is_local(path):
        return local(storage.local_path(path), "rb")
    fs, inner = storage.filesystem(path)
    return pa.PythonFile(fs.open(inner, "rb"), mode="r")


def _in_order(pieces: list[Any], places: list[npt.NDArray[np.int64]]) -> Any:
    """Join tables, and put their rows at the given places."""
    if len(pieces) == 1:
        return pieces[0].combine_chunks()
    return pa.concat_tables(pieces).take(pa.array(np.argsort(np.concatenate(places)))).combine_chunks()


class Split:
    """Random access to the rows of one split: first those of its first source, then those of the next, and so on."""

    def __init__(self, sections: tuple[Section, ...]) -> None:
        self._sections = sections
        self._starts = np.cumsum([0, *self.rows_of_sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def rows_of_sources(self) -> tuple[int, ...]:
        """Number of rows from each source."""
        return tuple(section.manifest.rows for section in self._sections)

    @property
    def rows_per_block(self) -> int:
        return self._sections[0].manifest.rows_per_block

    @functools.cached_property
    def index(self) -> SplitIndex:
        """Counts of every row, read once.

        Local files of a split with one source are mapped into memory: about 20 bytes a row, which the workers of a host
        share. With several sources the index is a copy.

        Raises:
            DataError: the index is missing or damaged.
        """
        found = [section.read_index() for section in self._sections]
        return found[0] if len(found) == 1 else _joined(found)

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Any:
        """Read the rows with these numbers, in this order.

        Returns:
            pyarrow.Table with ROW_SCHEMA and len(rows) rows.

        Raises:
            DataError: a shard is missing or damaged.
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
    """An open prepared directory, of a job's data or of one source."""

    root: str
    manifest: Manifest

    @classmethod
    def open(cls, root: str) -> Prepared:
        return cls(root, read_manifest(root))

    @classmethod
    def find(cls, root: str) -> Prepared | None:
        """Open a prepared directory; None if it does not exist or is not complete."""
        return cls.open(root) if storage.exists(manifest_path(root)) else None

    def missing_files(self) -> list[str]:
        """List files of the splits that are missing or differ in size from the manifest. Raises StorageError."""
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
        """Open a split. It caches up to `cached_blocks` blocks of each source, fewer if they are large."""
        sections = (
            Section(self._folder(name, manifest), number, manifest, cached_blocks)
            for number, manifest in enumerate(self.manifest.splits[name])
        )
        return Split(tuple(sections))

    def _folder(self, split: str, manifest: SplitManifest) -> str:
        if manifest.folder is None:
            return storage.join(self.root, split)
        return storage.join(self.root.rstrip("/").rpartition("/")[0], manifest.folder)


@contextlib.contextmanager
def read_buffer(path: str) -> Iterator[Any]:
    """Open a file for pyarrow, mapped into memory if it is local, else read into memory.

    Raises:
        StorageError: the file cannot be read.
        DataError: its content is damaged.
    """
    local = storage.is_local(path)
    try:
        with pa.memory_map(storage.local_path(path)) if local else pa.BufferReader(storage.read_bytes(path)) as source:
            yield source
    except FileNotFoundError as error:
        raise StorageError(f"cannot read {path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged: {error}. Remove it, and prepare the data again.") from error
