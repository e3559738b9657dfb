"""Finds the code of a user's function without importing it, fingerprints it, and sends it to workers, which run it.

The function package.module:function takes one record (a dict of its columns) and returns one sample, a list of samples,
or None to leave the record out. A sample is a dict with the keys of a built-in format: `messages`; `prompt` and
`completion`; `instruction`, `output` and optionally `input`; `text`; `text` and `label`.

A worker on another host may lack the job's working directory, so the Python files of the function's top-level module or
package are sent with the work. Other modules in the working directory that they import are shipped by `ray job submit`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from jobs.data.sources.bad_records import BadRecord, Reason, Rejected
from jobs.data.sources.formats import REQUIRED_COLUMNS, Reading, Sample, sample_of
from jobs.data.sources.records import Record
from jobs.spec.data import Columns

_MOST_BYTES = 32 * 2**20  # a larger package is not sent, and must be installed on every node
_FRAMES = 4  # innermost frames of a traceback that are shown


@dataclass(frozen=True)
class UserCode:
    """A function package.module:function and its files; small, and can be pickled."""

    name: str
    root: str  # the directory on the path that contains its top-level module
    files: tuple[tuple[str, bytes], ...]  # (path under root, content); empty if it is installed on every node
    unsent: str = ""  # digest of files that are too large to send

    @functools.cached_property
    def digest(self) -> str:
        return self.unsent or self._digest_of_files

    @property
    def _digest_of_files(self) -> str:
        digest = hashlib.sha256(self.name.encode())
        for path, content in self.files:
            digest.update(path.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def as_sent(self) -> UserCode:
        """Return the code as workers get it: without files that are too large. A change of them still counts."""
        if sum(len(content) for _, content in self.files) <= _MOST_BYTES:
            return self
        return replace(self, files=(), unsent=self._digest_of_files)

    @property
    def top(self) -> str:
        """The name of the top-level module or package."""
        return self.name.partition(":")[0].partition(".")[0]


def read_code(name: str) -> UserCode:
    """Read the code of package.module:function as it would be imported from the working directory. Nothing is run.

    If the module is not found, the code has no files, and workers report the error.
    """
    code = UserCode(name, os.getcwd(), ())
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    spec = _find_spec(code.top)
    if spec is None:
        return code
    folders = list(spec.submodule_search_locations or ())
    if folders:
        root = os.path.dirname(folders[0])
        # The directory of a package that is installed as editable may have another name than the package.
        paths = {os.path.join(code.top, os.path.relpath(path, folders[0])): path for path in _python_files(folders[0])}
    elif spec.origin is not None and spec.origin.endswith(".py"):
        root, paths = os.path.dirname(spec.origin), {f"{code.top}.py": spec.origin}
    else:
        return code
    files = [(inner, Path(path).read_bytes()) for inner, path in sorted(paths.items())]
    return UserCode(name, root, tuple(files)).as_sent()


def _find_spec(top: str) -> ModuleSpec | None:
    """Find a top-level module with all import finders, because an editable installation may have added one.

    `importlib.util.find_spec` would return modules that are already imported.
    """
    found = (finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


def _python_files(folder: str) -> Iterator[str]:
    for root, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if name != "__pycache__" and not _is_environment(root, name))
        yield from (os.path.join(root, name) for name in names if name.endswith(".py"))


def _is_environment(root: str, name: str) -> bool:
    """Whether a directory is a virtual environment, whose packages are not the user's code."""
    return os.path.isfile(os.path.join(root, name, "pyvenv.cfg"))


def function_of(code: UserCode) -> Callable[[dict[str, Any]], Any]:
    """Return the function, imported once per process. Raises Rejected: it cannot be imported, or is not a function."""
    key = (code.name, code.digest)
    if key not in _IMPORTED:
        _IMPORTED[key] = _import(code)
    return _IMPORTED[key]


_IMPORTED: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {}


def _import(code: UserCode) -> Callable[[dict[str, Any]], Any]:
    root = code.root if _lies_in(code, code.root) else _unpacked(code)
    module, _, function = code.name.partition(":")
    _forget_others(code, root)
    if root in sys.path:
        sys.path.remove(root)
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module may raise anything, or be a script that exits
        what = f"data.format {code.name} cannot be imported on a worker"
        raise Rejected(
            f"{what}: {type(error).__name__}: {error} (searched from {root}). It, and what it imports, must be "
            "installed on every node, or lie in the job's working directory",
            what,
        ) from error
    if not callable(found):
        what = f"data.format {code.name} is a {type(found).__name__}, not a function"
        raise Rejected(what, what)
    return found  # type: ignore[no-any-return]


def _lies_in(code: UserCode, root: str) -> bool:
    """Whether exactly these files are present, as on the driver's host and on shared storage."""
    try:
        return all(Path(root, path).read_bytes() == content for path, content in code.files)
    except OSError:
        return False


def _unpacked(code: UserCode) -> str:
    root = tempfile.mkdtemp(prefix="fleetune-code-")  # kept until the process ends, because imports may happen later
    for path, content in code.files:
        target = Path(root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return root


def _forget_others(code: UserCode, root: str) -> None:
    """Unload modules of the same name that this process has imported from elsewhere or in another version."""
    loaded = getattr(sys.modules.get(code.top), "__file__", None)
    if not code.files or loaded is None:
        return
    elsewhere = not os.path.abspath(loaded).startswith(os.path.join(os.path.abspath(root), ""))
    if elsewhere or any(name == code.name for name, _ in _IMPORTED):
        for name in [name for name in sys.modules if name == code.top or name.startswith(f"{code.top}.")]:
            del sys.modules[name]


def own_samples(record: Record, reading: Reading, code: UserCode) -> list[Sample | BadRecord]:
    """Return the samples that the user's function makes of one record.

    An exception becomes a BadRecord; an unusable function or result becomes a fatal one.
    """
    try:
        function = function_of(code)
    except Rejected as error:
        return [BadRecord.of(record.file, record.line, error.reason, fatal=True)]
    for column, value in record.value.items():
        if isinstance(value, Reason):
            what = f"{column!r} has {value.text}", f"{column!r} has {value.kind}"
            return [BadRecord.of(record.file, record.line, Reason(*what))]
    try:
        made = function(dict(record.value))
    except (Exception, SystemExit) as error:  # SystemExit would end this process as if it had succeeded
        return [BadRecord.of(record.file, record.line, _raised(reading.format, error))]
    if made is None:
        return []
    samples = made if isinstance(made, list) else [made]
    return [_sample(one, record, reading) for one in samples]


def _sample(made: Any, record: Record, reading: Reading) -> Sample | BadRecord:
    if not isinstance(made, dict):
        wrong = f"{reading.format} returned a {type(made).__name__}, expected a dict, a list of dicts, or None"
        return BadRecord(record.file, record.line, wrong, fatal=True)
    builtin = _format_of(made, classify=reading.num_labels is not None)
    if builtin is None:
        wrong = f"{reading.format} returned keys {sorted(map(str, made))}, expected {_expected(reading)}"
        return BadRecord(record.file, record.line, wrong, fatal=True)
    found = sample_of(replace(record, value=made), replace(reading, format=builtin, columns=Columns()))
    if isinstance(found, BadRecord):
        what = f"{reading.format} returned"
        return replace(found, reason=f"{what}: {found.reason}", kind=f"{what}: {found.kind or found.reason}")
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
    said = f"{error}".encode("utf-8", "backslashreplace").decode()  # the text may hold half of a surrogate pair
    return Reason(f"{what}: {said}" + (f"\n{lines}" if lines else ""), what)
