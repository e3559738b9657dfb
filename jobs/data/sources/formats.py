"""Turns records into samples: what each data format needs, and why a record is rejected. Light to import."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.text import first_line
from jobs.data.sources.bad_records import BadRecord, Reason, Rejected
from jobs.data.sources.dialogues import TOOLS, ChatSample, chat_of
from jobs.data.sources.records import Record, is_unicode
from jobs.spec.data import Columns, Source
from jobs.spec.finetune import Spec

_NAMES_SHOWN = 20
_INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")  # with ".0", which pandas writes for integers in columns with gaps
# The columns that a format requires, by their names in the spec.
REQUIRED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "classification": ("text", "label"),
}
_SHARED_KEYS = (".parquet", ".arrow")  # endings of files in which all objects of a column have the same keys


@dataclass(frozen=True)
class TextSample:
    """Plain text to continue."""

    text: str


@dataclass(frozen=True)
class PairSample:
    """A prompt, and a completion that is learned; they are joined without a separator."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class InstructionSample:
    """A task, the text that it is about (may be empty), and the answer."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class ClassSample:
    """A text and the id of its class."""

    text: str
    label: int


Sample = TextSample | ChatSample | PairSample | InstructionSample | ClassSample


def texts_of(sample: Sample) -> tuple[str, ...]:
    if isinstance(sample, ChatSample):
        return sample.texts
    if isinstance(sample, PairSample):
        return sample.prompt, sample.completion
    if isinstance(sample, InstructionSample):
        return sample.instruction, sample.input, sample.output
    return (sample.text,)


@dataclass(frozen=True)
class Reading:
    """How the records of one source are read; small, and can be pickled."""

    format: str
    columns: Columns
    labels: tuple[str, ...] | None = None
    num_labels: int | None = None

    @classmethod
    def of(cls, spec: Spec, source: Source) -> Reading:
        data = spec.data
        return cls(data.format_of(source), data.columns_of(source), data.labels, spec.num_labels)

    @property
    def own(self) -> bool:
        """Whether a function of the user reads the records."""
        return ":" in self.format

    @property
    def required(self) -> tuple[tuple[str, str], ...]:
        """The required columns: (name in the spec, name in the file)."""
        roles = REQUIRED_COLUMNS.get(self.format, ())
        if self.format == "instruction" and self.columns.input != Columns().input:
            roles = (*roles, "input")  # optional only under its default name: else a misspelt name drops all inputs
        return tuple((role, getattr(self.columns, role)) for role in roles)


def sample_of(record: Record, reading: Reading) -> Sample | BadRecord:
    """Read a record in one of the built-in formats.

    Returns:
        A BadRecord with the reason if the record cannot be used; it is fatal if its label is not a class of the model.
    """
    try:
        return _read(record, reading)
    except Rejected as error:
        return BadRecord.of(record.file, record.line, error.reason, fatal=error.fatal)
    except RecursionError:
        return BadRecord(record.file, record.line, "its values are nested too deeply")


def _read(record: Record, reading: Reading) -> Sample:
    columns = reading.columns
    match reading.format:
        case "chat":
            with_nulls = record.file.lower().endswith(_SHARED_KEYS)
            return chat_of(_cell(record, columns.messages), record.value.get(TOOLS), with_nulls)
        case "prompt-completion":
            prompt = _text(record, columns.prompt, may_be_empty=True)
            return PairSample(prompt, _text(record, columns.completion))
        case "instruction":
            about = record.value.get(columns.input)
            given = "" if about is None else _text(record, columns.input, may_be_empty=True)
            return InstructionSample(_text(record, columns.instruction), given, _text(record, columns.output))
        case "classification":
            return ClassSample(_text(record, columns.text), _label(_cell(record, columns.label), reading))
        case _:
            return TextSample(_text(record, columns.text))


def column_names(columns: Iterable[str]) -> str:
    """List the first column names, quoted, because a file may have thousands."""
    every = [repr(name) for name in columns]
    more = [f"and {len(every) - _NAMES_SHOWN:,} more"] if len(every) > _NAMES_SHOWN else []
    return ", ".join(every[:_NAMES_SHOWN] + more) or "none"


def _short(value: Any) -> str:
    """Format a label for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _cell(record: Record, column: str) -> Any:
    if column not in record.value:
        raise Rejected(f"no column {column!r}; it has {column_names(record.value)}", f"no column {column!r}")
    value = record.value[column]
    if value is None:
        raise Rejected(f"{column!r} is null")
    if isinstance(value, Reason):
        raise Rejected(f"{column!r} has {value.text}", f"{column!r} has {value.kind}")
    return value


def _text(record: Record, column: str, may_be_empty: bool = False) -> str:
    value = _cell(record, column)
    if not isinstance(value, str):
        raise Rejected(f"{column!r} is a {type(value).__name__}, expected text")
    if not may_be_empty and not value.strip():
        raise Rejected(f"{column!r} is empty")
    if not is_unicode(value):
        raise Rejected(f"{column!r} holds half of a surrogate pair, which is no character")
    return value


def _label(value: Any, reading: Reading) -> int:
    """Return the class of a label. Names have priority over numbers, so star ratings may be named "1" to "5"."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):  # NumPy's, of a user's function
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        kind = type(value).__name__
        advice = ": write 0 and 1, or class names" if kind.startswith("bool") else ""  # `bool_` is NumPy's
        raise Rejected(f"label is a {kind}, expected a class name or a whole number{advice}")
    name = str(value).strip()
    if _INTEGER.fullmatch(name):
        name = name if reading.labels and name in reading.labels else str(int(name.partition(".")[0]))
    if reading.labels and name in reading.labels:
        return reading.labels.index(name)
    if not name or name == "nan":
        raise Rejected("label is empty")
    if not _INTEGER.fullmatch(name):
        raise _not_a_class(value, reading)
    if any(map(_INTEGER.fullmatch, reading.labels or ())):  # then numbers are names, not ids
        raise _unknown(value, reading)
    num_labels = reading.num_labels
    if int(name) < 0 or (num_labels is not None and int(name) >= num_labels):
        top = "" if num_labels is None else f" to {num_labels - 1}"
        raise Rejected(
            f"label {_short(value)} is outside 0{top}: correct it, or set model.num_labels or data.labels",
            f"label is outside N{' to N' if top else ''}",
            fatal=True,
        )
    return int(name)


def _not_a_class(value: Any, reading: Reading) -> Rejected:
    if isinstance(value, float) or re.fullmatch(r"[+-]?\d*\.\d+", str(value).strip()):
        return Rejected(f"label {_short(value)} is not a whole number", "label is not a whole number")
    return _unknown(value, reading)


def _unknown(value: Any, reading: Reading) -> Rejected:
    what = "give the names of the classes, in the order of their ids, in data.labels"
    if reading.labels:
        what = f"data.labels is {list(reading.labels)}"
    return Rejected(f"unknown label {_short(value)}: {what}", "unknown label", fatal=True)


def first_of(bad: list[BadRecord], count: int) -> str:
    """Format the first bad records, indented. Only the first one shows all lines of its reason, such as a traceback."""
    lines = []
    for number, record in enumerate(bad[:count]):
        text = str(record) if number == 0 else first_line(str(record))
        lines.append("  " + text.replace("\n", "\n      "))
    return "\n".join(lines)
