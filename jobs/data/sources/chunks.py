"""The unit of work of preparation: a few thousand records of one file become a table of tokens. Pure except reading.

The end of a chunk depends only on the records, so every engine divides a file in the same way, also after a restart.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DataError, StorageOutage
from jobs.data.sources.bad_records import BadRecord, Reason
from jobs.data.sources.content import content_hash, held_out_below
from jobs.data.sources.file_stamp import stamp, stamp_elsewhere
from jobs.data.sources.formats import Reading, Sample, sample_of, texts_of
from jobs.data.sources.records import Record, RecordReader
from jobs.data.sources.tokenize import LossOn, Result, tokenise
from jobs.data.sources.user_code import UserCode, own_samples
from jobs.model_files.tokenizer import TokenizerFiles

RECORDS_PER_CHUNK = 4096
CHARS_PER_CHUNK = 2**21  # characters of text, which bound a chunk's memory for records of any length
RECORDS_AT_ONCE = 256  # passed to the tokenizer in one call
_LINES_BETWEEN_LOOKS = 4096  # after which the file is checked for changes

TOKENS_SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("reason", pa.string()),  # why the record is set aside; null for a sample
        ("fatal", pa.bool_()),
        ("content", pa.uint64()),  # hash of the sample without its label
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("cut", pa.int64()),  # tokens beyond seq_len
    ]
)


@dataclass(frozen=True)
class Work:
    """Everything that a worker needs to prepare one source; it sees neither the spec nor the model directory."""

    files: tuple[str, ...]
    stamps: tuple[tuple[str, ...], ...]  # stamps of the files when they were fingerprinted, on `host`
    reading: Reading
    seq_len: int
    loss_on: LossOn
    tokenizer: TokenizerFiles
    code: UserCode | None = None  # set if a function of the user reads the records
    host: str = field(default_factory=platform.node)


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one file."""

    file: int
    number: int  # number in its file, from 0
    rows: tuple[
        tuple[int, Sample | BadRecord | Record], ...
    ]  # (line, ...); records if a user's function will read them
    position: int  # bytes of the file that were read by the end of the chunk
    last: bool = False  # whether the file ends here; the last chunk may have no rows
    outage: str | None = None  # why the rest of the file could not be read, if it may be read later
    joined: frozenset[int] = frozenset()  # lines that look like several records, see `Record.joined`


Task = Callable[[Chunk, Work], pa.Table]  # pure, and can be pickled
Todo = Mapping[int, frozenset[int]]  # by number of a file: the numbers of the chunks to leave out


def read_chunks(file: int, work: Work, skip: frozenset[int] = frozenset()) -> Iterator[Chunk]:
    """Read a file as chunks, without those whose numbers are in `skip`. The last chunk is always yielded.

    Nothing is raised in a worker: an error of reading becomes a fatal BadRecord.
    """
    reader = _Reader(file, work)
    rows: list[tuple[int, Sample | BadRecord | Record]] = []
    number, chars = 0, 0
    for line, row in reader:
        rows.append((line, row))
        chars += _chars(row)
        if len(rows) >= RECORDS_PER_CHUNK or chars >= CHARS_PER_CHUNK:
            if number not in skip:
                yield Chunk(file, number, tuple(rows), reader.position, joined=reader.joined_of(rows))
            rows, chars, number = [], 0, number + 1
    joined = reader.joined_of(rows)
    yield Chunk(file, number, tuple(rows), reader.position, last=True, outage=reader.outage, joined=joined)


class _Reader:
    """Yields the records of one file as samples. An error becomes the last row, which is fatal."""

    def __init__(self, file: int, work: Work) -> None:
        self._path, self._reading = work.files[file], work.reading
        self._stamp, self._is_here = work.stamps[file], work.host == platform.node()
        self._records: RecordReader | None = None
        self._joined = set[int]()
        self.outage: str | None = None

    def joined_of(self, rows: Sequence[tuple[int, object]]) -> frozenset[int]:
        """Return the lines of the rows that look like several records, see `Record.joined`."""
        return frozenset(line for line, _ in rows if line in self._joined)

    @property
    def position(self) -> int:
        return self._records.position if self._records is not None else 0

    def __iter__(self) -> Iterator[tuple[int, Sample | BadRecord | Record]]:
        try:
            if not self._is_here:
                self._stamp = stamp_elsewhere(self._path, self._stamp)
            self._records = RecordReader(self._path)
            for row in self._records:
                if row.line % _LINES_BETWEEN_LOOKS == 0 and self._changed():
                    break  # the file may grow as fast as it is read
                if isinstance(row, Record) and row.joined:
                    self._joined.add(row.line)
                yield (
                    row.line,
                    row if self._reading.own or isinstance(row, BadRecord) else sample_of(row, self._reading),
                )
            problem = _changed(self._path) if self._changed() else None
        except DataError as error:
            problem = Reason(str(error), f"{self._path} cannot be read")
        except StorageOutage as error:
            self.outage = str(error)
            problem = Reason(self.outage, f"{self._path} cannot be read now")
        if problem is not None:
            yield 0, BadRecord.of(self._path, 0, problem, fatal=True)

    def _changed(self) -> bool:
        return stamp(self._path) != self._stamp


def _changed(path: str) -> Reason:
    what = f"{path} changed while it was read, so the records do not belong to one state of the file"
    remedy = "Let the program that writes it finish, or copy the file, and start again"
    return Reason(f"{what}: nothing is kept. {remedy}", what)


def _chars(row: Sample | BadRecord | Record) -> int:
    """Count the characters of text, approximately."""
    if isinstance(row, Record):
        return sum(len(value) if isinstance(value, str) else len(str(value)) for value in row.value.values())
    return len(row.reason) if isinstance(row, BadRecord) else sum(map(len, texts_of(row)))


def samples_of(chunk: Chunk, work: Work) -> Iterator[tuple[int, Sample | BadRecord]]:
    """Yield the chunk's samples with their lines. This is where functions of the user run."""
    for line, row in chunk.rows:
        if isinstance(row, Record):
            assert work.code is not None, "it comes with the work"
            yield from ((line, sample) for sample in own_samples(row, work.reading, work.code))
        else:
            yield line, row


def tokens_of(chunk: Chunk, work: Work) -> Any:
    """Tokenise one chunk.

    Returns:
        pyarrow.Table with TOKENS_SCHEMA, in the order of the records.
    """
    tables = [TOKENS_SCHEMA.empty_table()]
    for some in tokenised(chunk, work):
        rows = [(line, *row) for line, sample, result in some for row in _rows(sample, result)]
        *plain, input_ids, labels, cut = zip(*rows, strict=True)
        columns = [pa.array(values, field.type) for values, field in zip(plain, TOKENS_SCHEMA, strict=False)]
        columns += [_lists(input_ids), _lists(labels), pa.array(cut, pa.int64())]
        tables.append(pa.table(columns, schema=TOKENS_SCHEMA))
    return pa.concat_tables(tables)


def tokenised(chunk: Chunk, work: Work) -> Iterator[list[tuple[int, Sample | BadRecord, Result]]]:
    """Yield the chunk's samples, some at a time: line, sample, and its rows or the reason why it has none."""
    samples = samples_of(chunk, work)
    while some := list(itertools.islice(samples, RECORDS_AT_ONCE)):
        good = [sample for _, sample in some if not isinstance(sample, BadRecord)]
        results = iter(tokenise(good, work.tokenizer.load(), work.seq_len, work.loss_on))
        yield [(line, sample, sample.why if isinstance(sample, BadRecord) else next(results)) for line, sample in some]


def _rows(sample: Sample | BadRecord, result: Result) -> Iterator[tuple[Any, ...]]:
    """Yield the columns of TOKENS_SCHEMA from `reason` on, for each row of a sample."""
    if isinstance(result, Reason):
        yield result.text, isinstance(sample, BadRecord) and sample.fatal, 0, _NO_TOKENS, _NO_TOKENS, 0
        return
    assert not isinstance(sample, BadRecord)
    content = content_hash(sample)
    for row in result:
        yield None, False, content, row["input_ids"], row["labels"], row["cut"]


def held_out(content: npt.NDArray[np.uint64], fraction: float | None) -> npt.NDArray[np.bool_]:
    """Decide by content which samples are held out; (samples,)."""
    if fraction is None:
        return np.zeros(len(content), dtype=bool)
    below: npt.NDArray[np.bool_] = content < np.uint64(held_out_below(fraction))
    return below


_NO_TOKENS = np.zeros(0, np.int32)


def _lists(arrays: Sequence[Any]) -> Any:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays), pa.int32()))
