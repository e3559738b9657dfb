"""The unit of work of preparation: some hundred records of one file in, an Arrow table of tokens out. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.data.formats import BadRow, ChatSample, Sample, sample_of
from jobs.data.records import read_records
from jobs.data.tokenise import Result, TokenRow, tokenise
from jobs.data.tokenizer import TokenizerFiles
from jobs.errors import DataError
from jobs.spec import Data

RECORDS_PER_BLOCK = 256

TOKENS_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),  # number of the source file
        ("line", pa.int64()),
        ("part", pa.int32()),  # 0, and on where a long text was cut
        ("reason", pa.string()),  # why the record is set aside; null for a sample
        ("fatal", pa.bool_()),
        ("content", pa.uint64()),  # hash of what the sample says, without its label
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Work:
    """What every worker must know; it sees neither the spec nor the model directory."""

    files: tuple[str, ...]
    data: Data
    num_labels: int | None
    tokenizer: TokenizerFiles


@dataclass(frozen=True)
class Block:
    """Consecutive records of one file."""

    file: int
    records: tuple[tuple[int, Sample | BadRow], ...]  # (line, sample)


def read_blocks(file: int, path: str, data: Data, num_labels: int | None) -> Iterator[Block]:
    """Read a file as blocks. What it cannot read becomes a fatal BadRow of line 0: nothing is raised in a worker."""
    records = _read(path, data, num_labels)
    while block := tuple(itertools.islice(records, RECORDS_PER_BLOCK)):
        yield Block(file, block)


def _read(path: str, data: Data, num_labels: int | None) -> Iterator[tuple[int, Sample | BadRow]]:
    try:
        for row in read_records(path):
            yield row.line, row if isinstance(row, BadRow) else sample_of(row, data, num_labels)
    except DataError as error:
        yield 0, BadRow(path, 0, str(error), fatal=True)


def tokens_of(block: Block, work: Work) -> Any:
    """Tokenise one block.

    Returns:
        pyarrow.Table with TOKENS_SCHEMA, in the order of the records.
    """
    samples = [sample for _, sample in block.records if not isinstance(sample, BadRow)]
    results = iter(tokenise(samples, work.tokenizer.load(), work.data.seq_len))
    lines = _Lines(block.file)
    for line, sample in block.records:
        if isinstance(sample, BadRow):
            lines.set_aside(line, sample.reason, sample.fatal)
        else:
            lines.add(line, sample, next(results))
    return lines.table()


def content_hash(sample: Sample) -> int:
    """64 bits over what a sample says. Without the label, so that a text never lies on both sides of a split."""
    said = json.dumps(sample.messages) if isinstance(sample, ChatSample) else sample.text
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "little")


class _Lines:
    """The columns of one table, growing."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lines: list[tuple[int, int, str | None, bool, int]] = []
        self._rows: list[TokenRow] = []

    def set_aside(self, line: int, reason: str, fatal: bool) -> None:
        self._lines.append((line, 0, reason, fatal, 0))
        self._rows.append(_NO_TOKENS)

    def add(self, line: int, sample: Sample, result: Result) -> None:
        if isinstance(result, str):
            self.set_aside(line, result, False)
            return
        content = content_hash(sample)
        for part, row in enumerate(result):
            self._lines.append((line, part, None, False, content))
            self._rows.append(row)

    def table(self) -> Any:
        line, part, reason, fatal, content = zip(*self._lines, strict=True)
        columns = [
            pa.array([self._file] * len(line), pa.int32()),
            pa.array(line, pa.int64()),
            pa.array(part, pa.int32()),
            pa.array(reason, pa.string()),
            pa.array(fatal, pa.bool_()),
            pa.array(content, pa.uint64()),
            _lists([row["input_ids"] for row in self._rows]),
            _lists([row["labels"] for row in self._rows]),
        ]
        return pa.table(columns, schema=TOKENS_SCHEMA)


_NO_TOKENS: TokenRow = {"input_ids": np.zeros(0, np.int32), "labels": np.zeros(0, np.int32)}


def _lists(arrays: Sequence[Any]) -> Any:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays), pa.int32()))


def run_here(work: Work) -> Iterator[Any]:
    """The plain engine: every block in this process, in order. Yields tables with TOKENS_SCHEMA."""
    for number, path in enumerate(work.files):
        for block in read_blocks(number, path, work.data, work.num_labels):
            yield tokens_of(block, work)
