"""Examines the first records of a source before anything starts. Light to import; reads files and URLs."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.errors import DataError
from cluster.text import many, nearest
from jobs.data.cutting import cut_of, format_cut
from jobs.data.sources.bad_records import NOT_UTF8, BadRecord
from jobs.data.sources.content import content_hash, empty_split, held_out_below
from jobs.data.sources.formats import (
    ClassSample,
    PairSample,
    Reading,
    Sample,
    column_names,
    first_of,
    sample_of,
    texts_of,
)
from jobs.data.sources.patterns import expand
from jobs.data.sources.records import Record, RecordReader, about_quotes
from jobs.model_files.directory import longest_text

LOOKED_AT_FILES = 8  # files of a source; few, because `validate` must answer in seconds, even on an object store
LOOKED_AT_RECORDS = 1000
_ESTIMATED_BY = 2**18  # bytes that are read to estimate how many records follow
_TOKENISED = 200  # samples that are tokenised to estimate truncation


@dataclass(frozen=True)
class Looked:
    """The first records of a source."""

    files: int
    of_files: int
    records: int
    whole: bool  # whether all of the source was read
    bad: tuple[BadRecord, ...]
    joined: tuple[str, ...]  # files and lines that look like several records, see `Record.joined`
    samples: tuple[Sample, ...]  # empty if a function of the user reads the records, because it is not run here
    expected_records: float  # records of the whole source, if the rest has equally long records

    @property
    def words(self) -> str:
        """Describe what was read: `all 43 records`, `the first 1,000 records` or `1,000 records of 8 of 12 files`."""
        return f"all {many(self.records, 'record')}" if self.whole else self.records_text

    @property
    def records_text(self) -> str:
        """Describe what was read as `words` does, but without the word `all`."""
        records = many(self.records, "record")
        if self.whole:
            return records
        return (
            f"{records} of {self.files:,} of {self.of_files:,} files" if self.of_files > 1 else f"the first {records}"
        )


def look_at(reading: Reading, path: str, max_records: int = LOOKED_AT_RECORDS) -> Looked:
    """Read the first records of a source.

    Args:
        path: file, directory, glob or URL, as in data.train.
        max_records: number of records to read, over the first LOOKED_AT_FILES files.

    Raises:
        DataError: no file matches, a file cannot be read, a column is missing, no record can be used, or a label is not
            one of the model's classes.
    """
    every = expand(path)
    files = every[:LOOKED_AT_FILES]
    share = -(-max_records // len(files))
    readers = {file: RecordReader(file) for file in files}
    rest = {file: iter(reader) for file, reader in readers.items()}
    found = {file: list(itertools.islice(records, share + 1)) for file, records in rest.items()}
    whole = len(files) == len(every) and all(len(rows) <= share for rows in found.values())
    rows = {file: some[:share] for file, some in found.items()}
    if not any(rows.values()):
        raise DataError(f"{path} holds no records{_of_nothing(readers)}: give files with at least one")
    if not reading.own:
        for file, some in rows.items():
            _check_columns(reading, file, [row for row in some if isinstance(row, Record)])
    read = list(itertools.chain.from_iterable(rows.values()))
    samples = [row if isinstance(row, BadRecord) or reading.own else sample_of(row, reading) for row in read]
    bad = [row for row in samples if isinstance(row, BadRecord)]
    _check_records(path, bad, len(read))
    expected = sum(len(some) + _records_left(readers[file], rest[file]) for file, some in found.items())
    return Looked(
        files=len(files),
        of_files=len(every),
        records=len(read),
        whole=whole,
        bad=tuple(bad),
        joined=tuple(f"{row.file}:{row.line}" for row in read if isinstance(row, Record) and row.joined),
        samples=tuple(one for one in samples if not isinstance(one, BadRecord | Record)),
        expected_records=len(read) if whole else expected * len(every) / len(files),
    )


def _records_left(reader: RecordReader, rest: Iterator[Record | BadRecord]) -> float:
    """Estimate how many records follow in a file, by reading on.

    The records so far would give a wrong estimate: the reader's position is up to a block ahead of them.
    """
    before, count = reader.position, 0
    for _ in rest:
        count += 1
        if reader.position > before + _ESTIMATED_BY:
            break
    read = reader.position - before
    return count if reader.position >= reader.size else count * (reader.size - before) / max(read, 1)


def _of_nothing(readers: dict[str, RecordReader]) -> str:
    """Distinguish an empty file from one with only a header."""
    if all(reader.size == 0 for reader in readers.values()):
        return " (empty, 0 bytes)"
    tables = all(reader.has_header for reader in readers.values())
    return " below its header" if tables and len(readers) == 1 else ""


def format_bad_records(looked: Looked, most: float) -> tuple[str | None, str | None]:
    """Judge the bad records of a source: return an error, or a warning, or (None, None) if there are none.

    A source that was read only in part is rejected only if its share of bad records is clearly too high.

    Args:
        most: data.max_bad_fraction.
    """
    bad = len(looked.bad)
    if not bad:
        return None, None
    what = f"{bad:,} of {looked.records_text} cannot be used"
    allowed = f"at most {most:g} of all records may be set aside (data.max_bad_fraction)"
    if bad > most * looked.expected_records * (1 if looked.whole else 2):
        advice = "Correct the data, data.format or data.columns. The first ones:\n"
        return f"{what}, and {allowed}. {advice}{first_of(list(looked.bad), 3)}{_about_encoding(looked.bad)}", None
    rest = "they will be set aside" if looked.whole else f"{allowed}; `fleetune data check` reads all records"
    return None, f"{what}: {rest}. The first one: {looked.bad[0]}"


def format_joined(looked: Looked) -> str | None:
    """Return a warning about fields of CSV or TSV that look like several records; None if none does."""
    if not looked.joined:
        return None
    first = looked.joined[0]
    what = f"{len(looked.joined):,} of {looked.records_text} may hold several records in one field, such as {first}"
    return f"{what}. {about_quotes(first.rpartition(':')[0])}"


def check_split(looked: Looked, fraction: float, path: str) -> None:
    """Raise DataError if `data.eval_fraction` leaves no sample of a source for one of its splits.

    A source that was not read whole passes, and so does one that a function of the user reads.
    """
    held = [content_hash(sample) < held_out_below(fraction) for sample in looked.samples]
    if looked.whole and held and len(set(held)) < 2:
        raise DataError.at("data.eval_fraction", empty_split(fraction, len(held), path, "train" if held[0] else "eval"))


def cut_in_sample(samples: Sequence[Sample], model_dir: str, seq_len: int, where: str) -> str | None:
    """Estimate on some samples what `seq_len` truncates; None if it is little or cannot be estimated here.

    Dialogues and instructions are left out: what a chat template writes around them may be longer than they are.
    """
    path = os.path.join(model_dir, "tokenizer.json")
    drawn = samples[:: -(-len(samples) // _TOKENISED) or 1]
    some = ["".join(texts_of(one)) for one in drawn if isinstance(one, PairSample | ClassSample)]
    if not some or not os.path.isfile(path) or all(len(text.encode()) < seq_len for text in some):
        return None  # every token has at least one byte, so nothing is truncated
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        lengths = Counter(len(found.ids) for found in tokenizer.encode_batch(some))
    except Exception:  # tokenizers raises a bare Exception; preparing the data reports what is wrong with a tokenizer
        return None
    words = format_cut(where, cut_of(lengths, seq_len), seq_len, longest_text(model_dir))
    return words and f"{words} (counted on {many(len(some), 'sample')})"


def _check_columns(reading: Reading, file: str, records: list[Record]) -> None:
    if not records:
        return
    present = tuple(dict.fromkeys(itertools.chain.from_iterable(record.value for record in records)))
    for role, column in reading.required:
        if column not in present:
            meant = f" Did you mean {near!r}?" if (near := nearest(column, present)) else ""
            raise DataError.at(
                f"data.columns.{role}",
                f"{file} has no column {column!r}; it has {column_names(present)}.{meant} "
                f"Set data.columns.{role} to the column with the {role}. If the columns of files differ, make "
                "each file a separate source in data.train, with its columns.",
            )


def _check_records(path: str, bad: Sequence[BadRecord], count: int) -> None:
    for row in bad:
        if row.fatal:
            raise DataError(str(row))
    if len(bad) == count:
        listed = f"{first_of(list(bad), 3)}{_about_encoding(bad)}"
        raise DataError(f"none of the first {count:,} records of {path} can be used:\n{listed}")


def _about_encoding(bad: Sequence[BadRecord]) -> str:
    """Say how to convert a file, if one of its bad records is not UTF-8."""
    if all(row.kind != NOT_UTF8 for row in bad):
        return ""
    return "\nConvert a file in another encoding, such as Windows-1252, as: iconv -f WINDOWS-1252 -t UTF-8 old > new"
