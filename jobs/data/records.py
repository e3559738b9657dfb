"""Source files as streams of records: JSONL, CSV and Parquet, from a path or an fsspec URL. Light to import."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from jobs import storage
from jobs.errors import DataError, StorageError

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".csv")
SUPPORTED = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")
PARQUET_ROWS = 256
# A missing closing quote would otherwise pull the rest of the file into one field. In characters.
LONGEST_CSV_FIELD = 64 * 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """One record of a source file."""

    file: str
    line: int  # 1-based; where a CSV record starts; the row number in Parquet
    value: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A record that cannot be used, and why."""

    file: str
    line: int
    reason: str
    fatal: bool = field(default=False, kw_only=True)  # the spec does not fit the data: no row may be set aside for it

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8, which no lone surrogate can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def suffix_of(path: str) -> str:
    """The one of SUPPORTED that `path` ends with. Raises DataError."""
    for suffix in SUPPORTED:
        if path.lower().endswith(suffix):
            return suffix
    raise DataError(f"{path} has no supported ending: rename or convert it to one of {', '.join(SUPPORTED)}")


def expand(pattern: str) -> tuple[str, ...]:
    """The files that a path, glob or fsspec URL names, sorted; local ones as absolute paths.

    Raises:
        DataError: no file matches, it is a directory, or an ending is not supported.
    """
    try:
        fs, inner = storage.filesystem(pattern)
        names = _matches(fs, inner)
        folder = not names and fs.isdir(inner)
    except Exception as error:  # object stores raise whatever their client raises
        raise DataError(f"cannot look for {pattern}: {type(error).__name__}: {error}") from error
    if folder:
        raise DataError(f"{pattern} is a directory: name the files in it, as {pattern.rstrip('/')}/*.jsonl")
    if not names:
        raise DataError(f"no file matches {pattern} (looked for {inner}): check the path in data.train and data.eval")
    files = tuple(sorted(names if storage.is_local(pattern) else map(fs.unstrip_protocol, names)))
    for file in files:
        suffix_of(file)
    return files


def _matches(fs: Any, inner: str) -> list[str]:
    if fs.isfile(inner):  # first, since a file's own name may hold brackets
        return [inner]
    if not glob.has_magic(inner):
        return []
    return [str(name) for name in fs.glob(inner) if fs.isfile(name)]


def read_records(file: str) -> Iterator[Record | BadRow]:
    """Stream the records of one file; empty lines are skipped.

    Raises:
        DataError: the file cannot be read, or is damaged so that what follows is lost.
    """
    suffix = suffix_of(file)
    try:
        with storage.open_read(file) as raw:
            if suffix == ".parquet":
                yield from _parquet(file, raw)
                return
            plain = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if suffix.endswith(".gz") else raw
            yield from (_csv if suffix.startswith(".csv") else _jsonl)(file, plain)
    except StorageError as error:
        raise DataError(str(error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {file}: {type(error).__name__}: {error}") from error


def _jsonl(file: str, lines: BinaryIO) -> Iterator[Record | BadRow]:
    for number, line in enumerate(lines, start=1):
        content = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if content:
            yield _json_record(file, number, content)


def _json_record(file: str, number: int, content: bytes) -> Record | BadRow:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(file, number, f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return BadRow(file, number, f"not JSON: {error}")
    if not isinstance(value, dict):
        return BadRow(file, number, f"a JSON {_json_name(value)}, but each line must hold an object")
    return Record(file, number, value)


def _json_name(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _csv(file: str, raw: BinaryIO) -> Iterator[Record | BadRow]:
    csv.field_size_limit(LONGEST_CSV_FIELD)  # global to the process; Python's own limit is 128 Ki characters
    # Undecodable bytes come through as surrogates, so that one bad record does not end the file.
    text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _csv_records(file, csv.reader(text, strict=True))
    finally:
        text.detach()  # else it closes `raw` behind the back of whoever opened that


def _csv_records(file: str, reader: Any) -> Iterator[Record | BadRow]:
    header: list[str] | None = None
    for line, fields in _csv_rows(file, reader):
        if isinstance(fields, BadRow):
            yield fields
        elif header is None:
            header = _header(file, fields)
        else:
            yield _csv_record(file, line, header, fields)


def _csv_rows(file: str, reader: Any) -> Iterator[tuple[int, list[str] | BadRow]]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                what = "a quote that opens in this record is never closed, so what follows is lost: close it"
                raise DataError(f"{file}:{line}: {what}") from error
            fields = BadRow(file, line, f"not CSV: {error}")
        if fields:
            yield line, fields


def _header(file: str, fields: list[str]) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise DataError(f"{file}: the header names a column twice: {', '.join(map(repr, twice))}")
    return fields


def _csv_record(file: str, line: int, header: list[str], fields: list[str]) -> Record | BadRow:
    if len(fields) != len(header):
        return BadRow(file, line, f"{len(fields)} fields, but the header has {len(header)}")
    if not all(map(is_unicode, fields)):
        return BadRow(file, line, "not UTF-8")
    return Record(file, line, dict(zip(header, fields, strict=True)))


def _parquet(file: str, raw: BinaryIO) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        for batch in pq.ParquetFile(raw).iter_batches(batch_size=PARQUET_ROWS):
            for value in batch.to_pylist():
                line += 1
                yield Record(file, line, value)
    except pa.ArrowException as error:
        raise DataError(f"cannot read {file} after row {line}: {error}") from error
