"""Records read by a function of the user's own, package.module:function. Imported and run in workers only.

The function takes one record (a dict of its columns) and returns one sample, a list of samples, or None to leave the
record out. A sample is a dict with the keys of a built-in format: `messages`; `prompt` and `completion`;
`instruction`, `output` and maybe `input`; `text`; `text` and `label`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from jobs.data.formats import REQUIRED_COLUMNS, Reading, Sample, sample_of
from jobs.data.records import BadRow, Record
from jobs.dataspec import Columns

_FRAMES = 4  # of a traceback, the innermost


def own_samples(record: Record, reading: Reading) -> list[Sample | BadRow]:
    """What the user's function makes of one record; BadRow where it raised, a fatal one where it is unusable."""
    try:
        function = _imported(reading.format)
    except _Unusable as error:
        return [BadRow(record.file, record.line, str(error), fatal=True)]
    try:
        made = function(dict(record.value))
    except Exception as error:
        return [BadRow(record.file, record.line, _raised(reading.format, error))]
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
        return replace(found, reason=f"{reading.format} returned: {found.reason}")
    return found


def _format_of(made: dict[str, Any], classify: bool) -> str | None:
    names = ("classification",) if classify else ("chat", "prompt-completion", "instruction", "text")
    return next((name for name in names if all(key in made for key in REQUIRED_COLUMNS[name])), None)


def _expected(reading: Reading) -> str:
    if reading.num_labels is not None:
        return "'text' and 'label'"
    return "'messages', or 'prompt' and 'completion', or 'instruction' and 'output', or 'text'"


class _Unusable(Exception):
    pass


@functools.cache
def _imported(name: str) -> Callable[[dict[str, Any]], Any]:
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module is a program of its own
        raise _Unusable(
            f"data.format {name} cannot be imported on a worker: {type(error).__name__}: {error} (searched from "
            f"{os.getcwd()}). It must be installed on every node, or lie in the job's working directory"
        ) from error
    if not callable(found):
        raise _Unusable(f"data.format {name} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _raised(name: str, error: Exception) -> str:
    """One line on what was raised, then the innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)[1:][-_FRAMES:]
    lines = "".join(traceback.format_list(frames)).rstrip()
    return f"{name} raised {type(error).__name__}: {error}" + (f"\n{lines}" if lines else "")


def digest_of_code(name: str) -> str | None:
    """sha256 over the Python files of the function's top-level module or package; None where it has none.

    Nothing is imported. What that code imports from elsewhere is not covered.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    top = name.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    digest = hashlib.sha256()
    for path in _files_of(spec.origin, list(spec.submodule_search_locations or ())):
        with open(path, "rb") as file:
            digest.update(os.path.basename(path).encode() + b"\0" + file.read())
    return digest.hexdigest()


def _files_of(origin: str | None, folders: list[str]) -> Iterator[str]:
    if not folders and origin is not None and origin.endswith(".py"):
        yield origin
    for folder in folders:
        for root, inner, names in os.walk(folder):
            inner.sort()
            yield from (os.path.join(root, name) for name in sorted(names) if name.endswith(".py"))
