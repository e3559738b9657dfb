"""Reads source files as streams of records: JSON lines, CSV, TSV, text, Parquet and Arrow, from a path or URL.

Light to import.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from cluster.errors import DataError, StorageError, StorageOutage
from jobs.data.sources.bad_records import NOT_JSON, NOT_UTF8, BadRecord, Reason
from jobs.data.sources.dataset_dirs import arrow_batches, parquet_batches, values_of
from jobs.data.sources.file_stamp import info_of
from jobs.spec.data import DATA_SUFFIXES
from jobs.storage import files as storage
from jobs.storage.outages import is_outage

# Characters. Without a limit, a missing closing quote would read the rest of the file into one field.
LONGEST_CSV_FIELD = 64 * 2**20
# Bytes. Without a limit, a file without line ends, such as minified JSON, would be read as one line.
LONGEST_LINE = 256 * 2**20
_BLOCK = 64 * 2**10  # bytes read at a time, and examined before a file is accepted as text
# A comma that may separate fields. In a sentence, a space follows the comma; in a number, three digits do.
_COMMA = re.compile(r",(?=\S)(?!(?<=\d,)\d{3}(?!\d))")
_BOM = b"\xef\xbb\xbf"
_FOREIGN = (  # first bytes of files that are not UTF-8 text, and what to do with them
    (b"\x1f\x8b", "is gzip-compressed: let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed: decompress it"),
    (b"PK\x03\x04", "is a zip archive, as .xlsx is: extract or export it"),
    (b"PAR1", "is a Parquet file: let its name end in .parquet"),
    (b"ARROW1", "is an Arrow file: let its name end in .arrow"),
    (b"\xff\xfe\0\0", "is encoded as UTF-32: convert it, as: iconv -f UTF-32 -t UTF-8 old > new"),
    (b"\0\0\xfe\xff", "is encoded as UTF-32: convert it, as: iconv -f UTF-32 -t UTF-8 old > new"),
    (b"\xff\xfe", "is encoded as UTF-16: convert it, as: iconv -f UTF-16 -t UTF-8 old > new"),
    (b"\xfe\xff", "is encoded as UTF-16: convert it, as: iconv -f UTF-16 -t UTF-8 old > new"),
)


@dataclass(frozen=True)
class Record:
    """One record of a source file."""

    file: str
    line: int  # 1-based line where the record starts; in Parquet and Arrow, the number of the row
    value: dict[str, Any]
    joined: bool = False  # whether a field of CSV or TSV looks like several records between two quotes


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8; lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def suffix_of(path: str) -> str:
    """Return the one of DATA_SUFFIXES with which `path` ends. Raises DataError."""
    for suffix in DATA_SUFFIXES:
        if path.lower().endswith(suffix):
            return suffix
    raise DataError(f"{path} has no supported ending: convert it to one of {', '.join(DATA_SUFFIXES)}")


class RecordReader:
    """Yields the records of one file, without empty lines, and tells its position. Can be iterated once.

    Raises:
        DataError: the ending is not supported or there is no such file; or, during iteration, the file cannot be read,
            has other content than its name says, or is damaged so that the rest is lost.
        StorageOutage: the storage does not answer, or no longer.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._suffix = suffix_of(file)
        # Size of the file as stored, in bytes; 0 if the store does not report it.
        self.size = int(info_of(file, fresh=False).get("size") or 0)
        self.done = 0  # stored bytes that were read so far

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns."""
        return self._suffix.startswith((".csv", ".tsv"))

    @property
    def position(self) -> int:
        """Stored bytes read so far, at most `size`. Reading is up to some blocks ahead of the rows."""
        return min(self.done, self.size)

    def __iter__(self) -> Iterator[Record | BadRecord]:
        line = 0
        try:
            with storage.open_read(self.file) as raw:
                for row in self._rows(raw):
                    line = row.line
                    yield row
        except StorageOutage:
            raise
        except StorageError as error:
            raise DataError(str(error)) from error
        except Exception as error:  # the client of an object store may raise anything
            if is_outage(error, storage.is_local(self.file)):
                raise StorageOutage(f"{self._cannot_read(line)}: {type(error).__name__}: {error}") from error
            if not isinstance(error, (OSError, EOFError, zlib.error)):
                raise
            raise DataError(self._lost(line, error)) from error
        self.done = self.size

    def _rows(self, raw: BinaryIO) -> Iterator[Record | BadRecord]:
        if self._suffix in (".parquet", ".arrow"):
            batches = parquet_batches if self._suffix == ".parquet" else arrow_batches
            return _table_rows(self, batches(raw, self.size))
        source: Any = _Counted(raw, self)
        if self._suffix.endswith(".gz"):
            source = gzip.GzipFile(fileobj=source, mode="rb")
        lines = io.BufferedReader(source, _BLOCK)
        head = lines.peek(_BLOCK)
        _check_head(self.file, head)
        if self.has_header:
            return _csv(self.file, lines, "\t" if self._suffix.startswith(".tsv") else ",")
        _check_line_ends(self.file, head)
        if self._suffix.startswith(".txt"):
            return (_text_record(self.file, number, line) for number, line in _lines(self.file, lines, "text"))
        _check_json(self.file, head, strict=self._suffix in (".json", ".json.gz"))
        return (_json_record(self.file, number, line.strip()) for number, line in _lines(self.file, lines, "object"))

    def _cannot_read(self, line: int) -> str:
        return f"cannot read {self.file} after line {line}, at byte {self.position} of {self.size}"

    def _lost(self, line: int, error: Exception) -> str:
        what = f"{self._cannot_read(line)}: {error}"
        if isinstance(error, gzip.BadGzipFile) and not line:
            return f"{what}. If it is not compressed, let its name end without .gz; else copy or write it again."
        return f"{what}. Copy or write the file again."


class _Counted(io.RawIOBase):
    """A file that counts the bytes read from it, for its reader. Closing it leaves the file open."""

    def __init__(self, raw: BinaryIO, reader: RecordReader) -> None:
        self._raw, self._reader = raw, reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._raw.read(len(buffer))
        except OSError:
            raise
        except Exception as error:  # the client of an object store may raise anything
            raise OSError(f"{type(error).__name__}: {error}") from error
        buffer[: len(data)] = data
        self._reader.done += len(data)
        return len(data)


def _check_head(file: str, head: bytes) -> None:
    """Reject files that are not UTF-8 text, instead of reporting each of their lines."""
    for begin, what in _FOREIGN:
        if head.startswith(begin):
            raise DataError(f"{file} {what}")
    for name, zeros, others in (("UTF-16LE", head[1:8:2], head[0:8:2]), ("UTF-16BE", head[0:8:2], head[1:8:2])):
        if len(zeros) == 4 and not any(zeros) and all(others):
            raise DataError(f"{file} is encoded as {name}: convert it, as: iconv -f {name} -t UTF-8 old > new")


def _check_json(file: str, head: bytes, strict: bool) -> None:
    """Reject a document over several lines; with `strict`, any file whose first line is not an object."""
    first, end, rest = head.removeprefix(_BOM).lstrip().partition(b"\n")
    first = first.strip()
    seen = _json_record(file, 1, first) if end or len(head) < _BLOCK else None
    if first.startswith(b"["):  # a single bad line is not a reason to reject the file
        document = (
            not rest.strip() or seen is None or (isinstance(seen, BadRecord) and seen.kind in (NOT_JSON, NOT_UTF8))
        )
    else:
        not_object = isinstance(seen, BadRecord) and seen.kind != _REPEATED
        document = first == b"{" or (strict and bool(first) and not_object)
    if document:
        raise DataError(
            f"{file} begins with {first[:20].decode(errors='replace')!r}, but a JSON object in each line is expected. "
            "Convert an array, as: jq -c '.[]' old.json > new.jsonl; objects over several lines, as: jq -c . old > new"
        )


def _lines(file: str, lines: BinaryIO, what: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the content of each line that is not blank. `what`: the content that a line should have."""
    for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(f"{file}:{number}: a line of over {LONGEST_LINE} bytes: write one {what} a line")
        content = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")
        if content.strip():
            yield number, content


def _check_line_ends(file: str, head: bytes) -> None:
    """Refuse a file whose lines end with carriage returns alone: it would count as one record."""
    if b"\n" not in head and b"\r" in head.rstrip():
        what = f"the lines of {file} end in carriage returns (\\r) without line feeds (\\n)"
        raise DataError(f"{what}: convert it, as: tr '\\r' '\\n' < old > new")


def _text_record(file: str, number: int, content: bytes) -> Record | BadRecord:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRecord(file, number, f"{NOT_UTF8}: {error}", kind=NOT_UTF8)
    problem = _not_text([text])
    return BadRecord.of(file, number, problem) if problem else Record(file, number, {"text": text})


class _RepeatedKey(Exception):
    """An object has two values of one key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(repr(next(key for key in found if keys.count(key) > 1)))
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)  # made once: `json.loads` with a hook makes one in each call
_REPEATED = "an object has two values of one key"


def _json_record(file: str, number: int, content: bytes) -> Record | BadRecord:
    try:
        value = _JSON.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord(file, number, f"{NOT_UTF8}: {error}", kind=NOT_UTF8)
    except _RepeatedKey as error:
        return BadRecord(file, number, f"{_REPEATED}: {error}", kind=_REPEATED)
    except (ValueError, RecursionError) as error:
        return BadRecord(file, number, f"{NOT_JSON}: {error}", kind=NOT_JSON)
    if not isinstance(value, dict):
        return BadRecord(file, number, f"a JSON {_json_name(value)}, but each line must hold an object")
    return Record(file, number, value)


def _json_name(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _csv(file: str, lines: BinaryIO, delimiter: str) -> Iterator[Record | BadRecord]:
    csv.field_size_limit(LONGEST_CSV_FIELD)  # global to the process; Python's own limit is 128 Ki characters
    # Bytes that cannot be decoded become surrogates, so that a bad record does not end reading.
    text = io.TextIOWrapper(lines, encoding="utf-8-sig", errors="surrogateescape", newline="")
    header: list[str] | None = None
    for line, fields in _csv_rows(file, csv.reader(text, delimiter=delimiter, strict=True), delimiter):
        if header is None:
            header = _header(file, fields, delimiter)
        elif isinstance(fields, BadRecord):
            yield fields
        else:
            yield _csv_record(file, line, header, fields, delimiter)


def _csv_rows(file: str, reader: Any, delimiter: str) -> Iterator[tuple[int, list[str] | BadRecord]]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                what = "a quote that opens in this record is never closed, so what follows is lost: close it"
                raise DataError(f"{file}:{line}: {what}. {about_quotes(file)}") from error
            if "field limit" in str(error):
                what = f"a field of this record has more than {LONGEST_CSV_FIELD:,} characters: is a quote not closed?"
                raise DataError(f"{file}:{line}: {what} {about_quotes(file)}") from error
            kind = "not TSV" if delimiter == "\t" else "not CSV"
            said = str(error).replace("\t", "\\t")
            # If a quote is closed only some lines later, all lines up to there are lost.
            for lost in range(line, reader.line_num + 1):
                yield lost, BadRecord(file, lost, f"{kind}: {said} (double a quote inside a quoted text)", kind=kind)
            continue
        if fields:
            yield line, fields


def about_quotes(file: str) -> str:
    """Explain how quotes are read, and how to convert a CSV or TSV file whose quotes are part of the texts."""
    delimiter = r"'\t'" if suffix_of(file).startswith(".tsv") else "','"
    convert = f"csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={delimiter}, quoting=csv.QUOTE_NONE))"
    return (
        "A quote at the start of a field joins everything up to the next quote. If the quotes are part of the texts, "
        f'convert the file, as: python -c "import csv, sys; {convert}" < old > new.csv'
    )


def _is_joined(fields: list[str], delimiter: str) -> bool:
    """Whether a field looks like several records: each of its lines has as many delimiters as a record.

    With two columns, texts with one comma look alike, so the field must have at least two such whole lines inside.
    """
    between, pattern = len(fields) - 1, _COMMA if delimiter == "," else re.compile(re.escape(delimiter))
    for field in fields:
        if not between or field.count("\n") < (3 if between == 1 else 1):
            continue
        first, *whole, last = (len(pattern.findall(line)) for line in field.split("\n"))
        if {first + last, *whole} == {between}:
            return True
    return False


def _header(file: str, fields: list[str] | BadRecord, used: str) -> list[str]:
    if isinstance(fields, BadRecord):
        raise DataError(f"{fields}: correct the header, which names the columns")
    if problem := _not_text(fields):
        raise DataError(f"{file}: the header is {problem.text}: convert the file to UTF-8")
    if not any(map(str.strip, fields)):
        raise DataError(f"{file}: the header is empty: name the columns in the first line")
    if used == "," and len(fields) == 1 and "\t" in fields[0]:
        raise DataError(
            f"{file}: the header is one column, {fields[0]!r}: is it separated by tabs? End its name in .tsv"
        )
    for delimiter, name in ((";", "';'"), (",", "commas")):
        if len(fields) == 1 and delimiter != used and delimiter in fields[0]:
            convert = f"csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={delimiter!r}))"
            raise DataError(
                f"{file}: the header is one column, {fields[0]!r}: is it separated by {name}? Convert it to commas, "
                f'as: python -c "import csv, sys; {convert}" < old.csv > new.csv'
            )
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise DataError(f"{file}: the header names a column twice: {', '.join(map(repr, twice))}: rename one")
    return fields


def _csv_record(file: str, line: int, header: list[str], fields: list[str], delimiter: str) -> Record | BadRecord:
    if len(fields) != len(header):
        what = f"{len(fields)} fields, but the header has {len(header)}"
        return BadRecord(file, line, what, kind="N fields, but the header has N")
    if problem := _not_text(fields):
        return BadRecord.of(file, line, problem)
    return Record(file, line, dict(zip(header, fields, strict=True)), joined=_is_joined(fields, delimiter))


def _not_text(fields: list[str]) -> Reason | None:
    if not all(map(is_unicode, fields)):
        return Reason(NOT_UTF8, NOT_UTF8)
    if any("\0" in one for one in fields):  # left by a crash in blocks that were allocated but not written
        return Reason("not text: it holds NUL bytes", "not text")
    return None


def _table_rows(reader: RecordReader, batches: Iterator[tuple[Any, int]]) -> Iterator[Record | BadRecord]:
    file, line = reader.file, 0
    try:
        for batch, done in batches:
            names = batch.schema.names
            if len(set(names)) < len(names):
                raise DataError(f"{file} has two columns of one name, among {', '.join(map(repr, names))}: rename one")
            begin = reader.done
            for number, value in enumerate(values_of(batch), start=1):
                line += 1
                reader.done = begin + (done - begin) * number // batch.num_rows
                yield Record(file, line, value)
    except DataError:
        raise
    except Exception as error:  # pyarrow and clients of object stores may raise anything
        if is_outage(error, storage.is_local(file)):
            raise
        what = f"cannot read {file} after row {line}: {type(error).__name__}: {error}"
        raise DataError(f"{what.rstrip('.')}. Copy or write the file again.") from error
