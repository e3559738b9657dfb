"""Parts: the stored results of an unfinished preparation, one Parquet file for each chunk, under parts/.

A part appears whole or not at all, and its content depends only on the source. So any later preparation, on any host,
tokenises only chunks without a part. Two processes that do the same work write the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import StorageError, StorageOutage
from jobs.data.prepared import IGNORE_INDEX, read_buffer
from jobs.data.sources.chunks import Chunk, Work, tokens_of
from jobs.storage import files as storage

_NAME = re.compile(r"^(\d{5,})-(\d{6,})(-end)?\.parquet$")
_INDEX_COLUMNS = ("line", "reason", "content", "num_tokens", "num_targets", "cut")

FACTS_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("records", pa.int64()),
        ("samples", pa.int64()),
        ("bad", pa.int64()),
        ("position", pa.int64()),  # bytes of the file that were read by the end of the chunk
        ("fatal", pa.string()),  # the first reason for which nothing can be prepared; usually null
        ("fatal_line", pa.int64()),  # line of that reason
        ("error", pa.string()),  # why the chunk could not be read or its part stored; usually null
        ("outage", pa.bool_()),  # whether that may be different later
    ]
)


@dataclass(frozen=True, order=True)
class PartName:
    """The name of a part's file, which identifies its chunk."""

    file: int
    number: int
    last: bool

    def __str__(self) -> str:
        return f"{self.file:05d}-{self.number:06d}{'-end' if self.last else ''}.parquet"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        match = _NAME.match(name)
        return cls(int(match[1]), int(match[2]), match[3] is not None) if match else None


def parts_folder(root: str) -> str:
    return storage.join(root, "parts")


def stored_parts(root: str) -> tuple[PartName, ...]:
    """List the stored parts, in source order."""
    names = (PartName.parse(name) for name in storage.list_names(parts_folder(root)))
    return tuple(sorted(name for name in names if name is not None))


def missing(parts: Iterable[PartName], files: int) -> dict[int, frozenset[int]]:
    """Return the files that are not completely stored, with the numbers of their stored chunks except the last."""
    numbers: dict[int, set[int]] = {file: set() for file in range(files)}
    ends: dict[int, int] = {}
    for part in parts:
        if part.last:
            ends[part.file] = part.number
        else:
            numbers[part.file].add(part.number)
    return {
        file: frozenset(there) for file, there in numbers.items() if file not in ends or there < set(range(ends[file]))
    }


def store_part(chunk: Chunk, work: Work, root: str) -> Any:
    """Tokenise and store a chunk. Returns a table of one row with FACTS_SCHEMA. Runs in workers."""
    table = tokens_of(chunk, work)
    bad = table.filter(pc.is_valid(table["reason"]))
    fatal = bad.filter(bad["fatal"]).slice(0, 1).to_pylist()
    error, outage = chunk.outage, chunk.outage is not None
    if not fatal:
        try:
            name = PartName(chunk.file, chunk.number, chunk.last)
            storage.write_bytes(storage.join(parts_folder(root), str(name)), _encoded(table, chunk))
        except StorageError as problem:
            error, outage = str(problem), isinstance(problem, StorageOutage)
    facts = {
        "file": chunk.file,
        "records": len(chunk.rows),
        "samples": table.num_rows - bad.num_rows,
        "bad": bad.num_rows,
        "position": chunk.position,
        "fatal": fatal[0]["reason"] if fatal else None,
        "fatal_line": fatal[0]["line"] if fatal else None,
        "error": error,
        "outage": outage,
    }
    return pa.Table.from_pylist([facts], schema=FACTS_SCHEMA)


def _encoded(table: Any, chunk: Chunk) -> bytes:
    tokens = pc.list_value_length(table["input_ids"])
    whole = table.append_column("num_tokens", tokens.cast(pa.int32()))
    whole = whole.append_column("num_targets", _targets(table["labels"]))
    largest = pc.max(pc.list_flatten(table["input_ids"])).as_py() or 0
    facts = {"records": len(chunk.rows), "position": chunk.position, "largest_token": largest}
    whole = whole.replace_schema_metadata({name: str(value) for name, value in facts.items()})
    sink = pa.BufferOutputStream()
    # No statistics and no dictionaries, because a part is read once and as a whole.
    pq.write_table(whole, sink, compression="lz4", use_dictionary=False, write_statistics=False)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _targets(labels: Any) -> Any:
    """Count the targets of each sample; a class counts as one."""
    lists = labels.combine_chunks()
    sample_of_target = pc.list_parent_indices(lists).to_numpy()[lists.flatten().to_numpy() != IGNORE_INDEX]
    return pa.array(np.bincount(sample_of_target, minlength=len(lists)), pa.int32())


@dataclass(frozen=True)
class PartIndex:
    """A part without its tokens."""

    name: PartName
    records: int
    position: int
    num_tokens: Any  # (samples,) int32
    num_targets: Any  # (samples,) int32
    cut: Any  # (samples,) int64
    content: Any  # (samples,) uint64
    largest_token: int | None  # None: an earlier release wrote the part
    bad: tuple[tuple[int, str], ...]  # (line, reason)


def read_index(root: str, name: PartName) -> PartIndex:
    """Read a part without its tokens. Raises StorageError, or DataError if the part is damaged."""
    with read_buffer(storage.join(parts_folder(root), str(name))) as source:
        file = pq.ParquetFile(source)
        there = set(file.schema_arrow.names)  # parts of an earlier release have no column `cut`
        table = file.read(columns=[name for name in _INDEX_COLUMNS if name in there])
        metadata = file.schema_arrow.metadata
    good, bad = _apart(table)
    return PartIndex(
        name=name,
        records=int(metadata[b"records"]),
        position=int(metadata[b"position"]),
        num_tokens=good["num_tokens"].to_numpy(),
        num_targets=good["num_targets"].to_numpy(),
        cut=good["cut"].to_numpy() if "cut" in good.column_names else np.zeros(len(good), np.int64),
        content=good["content"].to_numpy(),
        largest_token=int(metadata[b"largest_token"]) if b"largest_token" in metadata else None,
        bad=tuple(zip(bad["line"].to_pylist(), bad["reason"].to_pylist(), strict=True)),
    )


def read_tokens(root: str, name: PartName) -> tuple[Any, Any]:
    """Read tokens and labels of all samples of a part, concatenated: two arrays of int32."""
    with read_buffer(storage.join(parts_folder(root), str(name))) as source:
        table = pq.read_table(source, columns=["reason", "input_ids", "labels"])
    good, _ = _apart(table)
    return pc.list_flatten(good["input_ids"]).to_numpy(), pc.list_flatten(good["labels"]).to_numpy()


def _apart(table: Any) -> tuple[Any, Any]:
    valid = pc.is_valid(table["reason"])
    return table.filter(pc.invert(valid)), table.filter(valid)
