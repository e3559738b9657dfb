"""From a record to a sample: what each data format asks of its columns, and how it is refused. Light to import."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs.data.records import BadRow, Record, expand, is_unicode, read_records
from jobs.errors import DataError
from jobs.spec import Data

__all__ = [
    "BadRow",
    "ChatSample",
    "ClassSample",
    "Record",
    "Sample",
    "TextSample",
    "check_source",
    "expand",
    "read_records",
    "sample_of",
]

CHECKED_FILES = 8  # of a glob; `validate` must answer in seconds, also on an object store
_INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")  # with ".0", as pandas writes whole numbers in a column that has gaps


@dataclass(frozen=True)
class TextSample:
    """Plain text to continue."""

    text: str


@dataclass(frozen=True)
class ChatSample:
    """A dialogue with at least one assistant turn; messages are (role, content)."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassSample:
    """A text and the id of its class."""

    text: str
    label: int


Sample = TextSample | ChatSample | ClassSample


class _Refused(Exception):
    def __init__(self, reason: str, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal


def sample_of(record: Record, data: Data, num_labels: int | None) -> Sample | BadRow:
    """Read a record as the spec's format says.

    Returns:
        BadRow with the reason if the record cannot be used; it is fatal when its label is no class of the model.
    """
    try:
        if data.format == "chat":
            return ChatSample(_messages(_cell(record, data.columns.messages)))
        text = _text(record, data.columns.text)
        if data.format == "text":
            return TextSample(text)
        return ClassSample(text, _label(_cell(record, data.columns.label), data, num_labels))
    except _Refused as refused:
        return BadRow(record.file, record.line, str(refused), fatal=refused.fatal)


def _cell(record: Record, column: str) -> Any:
    if column not in record.value:
        raise _Refused(f"no column {column!r}; it has {', '.join(map(repr, record.value)) or 'none'}")
    value = record.value[column]
    if value is None:
        raise _Refused(f"{column!r} is null")
    return value


def _text(record: Record, column: str) -> str:
    value = _cell(record, column)
    if not isinstance(value, str):
        raise _Refused(f"{column!r} is a {type(value).__name__}, expected text")
    if not value.strip():
        raise _Refused(f"{column!r} is empty")
    if not is_unicode(value):
        raise _Refused(f"{column!r} holds half of a surrogate pair, which is no character")
    return value


def _label(value: Any, data: Data, num_labels: int | None) -> int:
    """A name wins over a number, so that star ratings may be named "1" to "5"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Refused(f"label is a {type(value).__name__}, expected a class name or a whole number")
    name = str(value).strip()
    if _INTEGER.fullmatch(name):
        name = name if data.labels and name in data.labels else str(int(name.partition(".")[0]))
    if data.labels and name in data.labels:
        return data.labels.index(name)
    if not name or name == "nan":
        raise _Refused("label is empty")
    if not _INTEGER.fullmatch(name):
        raise _not_a_class(value, data)
    if int(name) < 0 or (num_labels is not None and int(name) >= num_labels):
        top = "" if num_labels is None else f" to {num_labels - 1}"
        raise _Refused(f"label {value!r} is outside 0{top}: correct it, or set model.num_labels or data.labels", True)
    return int(name)


def _not_a_class(value: Any, data: Data) -> _Refused:
    if isinstance(value, float) or re.fullmatch(r"[+-]?\d*\.\d+", str(value).strip()):
        return _Refused(f"label {value!r} is not a whole number")
    if data.labels:
        return _Refused(f"unknown label {value!r}: data.labels is {list(data.labels)}", True)
    what = "give the names of the classes, in the order of their ids, in data.labels"
    return _Refused(f"unknown label {value!r}: {what}", True)


def _messages(value: Any) -> tuple[tuple[str, str], ...]:
    turns = _decoded(value)
    if not isinstance(turns, list) or not turns:
        raise _Refused("messages is not a list of {role, content} with at least one turn")
    messages = tuple(_turn(number, turn) for number, turn in enumerate(turns, start=1))
    if not any(role == "assistant" for role, _ in messages):
        roles = ", ".join(dict.fromkeys(role for role, _ in messages))
        raise _Refused(f"no assistant turn, so nothing to learn (roles: {roles})")
    return messages


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:  # CSV has no lists: there they are written as JSON
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"messages is text, but not JSON: {error}") from error


def _turn(number: int, turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise _Refused(f"turn {number} is a {type(turn).__name__}, expected {{role, content}}")
    for key in ("role", "content"):
        if key not in turn:
            raise _Refused(f"turn {number} has no {key}; it has {', '.join(map(repr, turn)) or 'no keys'}")
        if not isinstance(turn[key], str):
            raise _Refused(f"{key} of turn {number} is a {type(turn[key]).__name__}, expected text")
        if not is_unicode(turn[key]):
            raise _Refused(f"{key} of turn {number} holds half of a surrogate pair, which is no character")
    return turn["role"], turn["content"]


def check_source(data: Data, path: str, num_labels: int | None, max_rows: int = 200) -> None:
    """Look at the first rows of a source, before anything starts.

    Args:
        path: file, glob or URL, as in data.train.
        max_rows: how many records are read, over the first CHECKED_FILES files.

    Raises:
        DataError: no file matches, one cannot be read, a column is missing, no row can be used, or a label is no class
            of the model.
    """
    files = expand(path)[:CHECKED_FILES]
    share = -(-max_rows // len(files))
    rows = [row for file in files for row in itertools.islice(read_records(file), share)]
    if not rows:
        raise DataError(f"{path} holds no records: give data.train and data.eval files with at least one")
    _check_columns(data, path, [row for row in rows if isinstance(row, Record)])
    _check_rows(path, [row if isinstance(row, BadRow) else sample_of(row, data, num_labels) for row in rows])


def _check_columns(data: Data, path: str, records: list[Record]) -> None:
    if not records:
        return
    present = tuple(dict.fromkeys(itertools.chain.from_iterable(record.value for record in records)))
    for role in {"text": ("text",), "chat": ("messages",), "classification": ("text", "label")}[data.format]:
        column = getattr(data.columns, role)
        if column not in present:
            raise DataError(
                f"{path} has no column {column!r}; it has {', '.join(map(repr, present)) or 'none'}."
                f"{_did_you_mean(column, present)} Set data.columns.{role} to the column with the {role}."
            )


def _did_you_mean(column: str, present: Iterable[str]) -> str:
    lower = {name.lower().strip(): name for name in present}
    close = difflib.get_close_matches(column.lower(), lower, n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


def _check_rows(path: str, rows: list[Sample | BadRow]) -> None:
    bad = [row for row in rows if isinstance(row, BadRow)]
    for row in bad:
        if row.fatal:
            raise DataError(str(row))
    if len(bad) == len(rows):
        raise DataError(f"none of the first {len(rows)} rows of {path} can be used:\n{first_of(bad, 3)}")


def first_of(bad: list[BadRow], count: int) -> str:
    """The first bad rows, one a line, indented."""
    return "\n".join(f"  {row}" for row in bad[:count])
