"""Reads records with a user's function, package.module:function. It is imported and run in workers only.

The function takes one record (a dict of its columns) and returns one sample, a list of samples, or None to leave the
record out. A sample is a dict with the keys of a built-in format: `messages`; `prompt` and `completion`;
`instruction`, `output` and optionally `input`; `text`; `text` and `label`.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any

from jobs.data.sources.bad_rows import BadRow, Reason
from jobs.data.sources.formats import REQUIRED_COLUMNS, Reading, Sample, sample_of
from jobs.data.sources.records import Record
from jobs.data.sources.user_code import Unusable, UserCode, function_of
from jobs.spec.data import Columns

_FRAMES = 4  # innermost frames of a traceback that are shown


def own_samples(record: Record, reading: Reading, code: UserCode) -> list[Sample | BadRow]:
    """Return the samples that the user's function makes of one record.

    An exception becomes a BadRow; an unusable function or result becomes a fatal one.
    """
    try:
        function = function_of(code)
    except Unusable as error:
        return [BadRow.of(record.file, record.line, error.reason, fatal=True)]
    try:
        made = function(dict(record.value))
    except (Exception, SystemExit) as error:  # SystemExit would end this process as if it had succeeded
        return [BadRow.of(record.file, record.line, _raised(reading.format, error))]
    if made is None:
        return []
    samples = made if isinstance(made, list) else [made]
    return [_sample(one, record, reading) for one in samples]


def _sample(made: Any, record: Record, reading: Reading) -> Sample | BadRow:
    if not isinstance(made, dict):
        wrong = f"{reading.format} returned a {type(made).__name__}, expected a dict, a list of dicts, or None"
        return BadRow(record.file, record.line, wrong, fatal=True)
    builtin = _format_of(made, classify=reading.num_labels is not None)
    if builtin is None:
        wrong = f"{reading.format} returned keys {sorted(map(str, made))}, expected {_expected(reading)}"
        return BadRow(record.file, record.line, wrong, fatal=True)
    found = sample_of(replace(record, value=made), replace(reading, format=builtin, columns=Columns()))
    if isinstance(found, BadRow):
        what = f"{reading.format} returned"
        return replace(found, reason=f"{what}: {found.reason}", kind=what)
    return found


def _format_of(made: dict[str, Any], classify: bool) -> str | None:
    names = ("classification",) if classify else ("chat", "prompt-completion", "instruction", "text")
    return next((name for name in names if all(key in made for key in REQUIRED_COLUMNS[name])), None)


def _expected(reading: Reading) -> str:
    if reading.num_labels is not None:
        return "'text' and 'label'"
    return "'messages', or 'prompt' and 'completion', or 'instruction' and 'output', or 'text'"


def _raised(name: str, error: BaseException) -> Reason:
    """Describe an exception in one line, followed by its innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)[1:][-_FRAMES:]
    lines = "".join(traceback.format_list(frames)).rstrip()
    what = f"{name} raised {type(error).__name__}"
    return Reason(f"{what}: {error}" + (f"\n{lines}" if lines else ""), what)
