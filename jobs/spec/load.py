"""Reads a spec of any kind from a file and `--set`, and has `checking` check it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import Mistake, SpecError, StorageError
from cluster.text import did_you_mean
from jobs.spec.checking.check import check, check_characters, valid_spec
from jobs.spec.checking.fields import SEARCHES
from jobs.spec.checking.lines import Document, Mark, Path, dotted, parse
from jobs.spec.checking.mistakes import shown
from jobs.spec.checking.overrides import SET, override
from jobs.spec.command import CommandSpec
from jobs.spec.compare import CompareSpec
from jobs.spec.data import DATA_SUFFIXES
from jobs.spec.finetune import SCHEMA_VERSION, Spec
from jobs.spec.queue import Kind
from jobs.spec.references import absolute, folder_of
from jobs.spec.sweep import Search, SweepSpec
from jobs.storage import files as storage

_DATA = (*(suffix for suffix in DATA_SUFFIXES if suffix != ".json"), ".gz", ".safetensors")

_LONGEST_VERSION = 40

AnySpec = Spec | CommandSpec | SweepSpec | CompareSpec
SPEC_MODELS: Mapping[Kind, type[AnySpec]] = {
    "finetune": Spec,
    "command": CommandSpec,
    "sweep": SweepSpec,
    "compare": CompareSpec,
}


def load_spec(path: str, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec that trains, from YAML or JSON. Relative paths in it become absolute, relative to the file.

    Args:
        path: local path or fsspec URL.
        overrides: such as `train.learning_rate=1e-5`; the value is YAML.

    Raises:
        SpecError: all mistakes, one a line as `file:line: key: what is wrong`; or the spec is of another kind.
    """
    return finetune_spec(load_marked(path, overrides).spec, path)


def trained_job(spec: AnySpec) -> Spec | None:
    """Return the job that a spec trains: the spec, or the base of a sweep or comparison; None for a command."""
    if isinstance(spec, Search):
        return spec.base
    return spec if isinstance(spec, Spec) else None


def job_in(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the base in the JSON of a sweep or a comparison, and any other spec itself."""
    base = spec.get("base")
    return base if isinstance(base, dict) else spec


def finetune_spec(spec: AnySpec, path: str) -> Spec:
    """Return the spec, which was read from `path`, if it is of kind finetune. Raises SpecError."""
    if isinstance(spec, CommandSpec):
        raise SpecError(
            f"{path} is of kind command, and nothing is trained with it here. Submit it to the queue: "
            f"fleetune submit {path}"
        )
    if isinstance(spec, SweepSpec):
        raise SpecError(f"{path} is of kind sweep, and a single job is needed here: fleetune run {path} runs the sweep")
    if isinstance(spec, CompareSpec):
        raise SpecError(f"{path} is of kind compare, and a single job is needed here: fleetune run {path} compares")
    return spec


def load_job_spec(path: str, overrides: Sequence[str] = ()) -> AnySpec:
    """Read a spec of any kind, as `load_spec` does. Raises SpecError."""
    return load_marked(path, overrides).spec


@dataclass(frozen=True)
class Loaded:
    """A spec, and by dotted name the place where each field is written (`job.yaml:12`, or `--set`)."""

    spec: AnySpec
    marks: Mapping[str, Mark]


def load_to_run(path: str, overrides: Sequence[str] = ()) -> Spec | SweepSpec | CompareSpec:
    """Read the spec of a job, sweep or comparison. Raises SpecError, also for a command, which only the queue runs."""
    spec = load_marked(path, overrides).spec
    return spec if isinstance(spec, Search) else finetune_spec(spec, path)


def load_sweep(path: str, overrides: Sequence[str] = ()) -> SweepSpec | None:
    """Read the spec of a sweep; None if the file holds a spec of another kind. Raises SpecError."""
    spec = load_marked(path, overrides).spec
    return spec if isinstance(spec, SweepSpec) else None


def load_marked(path: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a spec of any kind together with the places of its fields. Raises SpecError."""
    path = os.fspath(path)
    if path.lower().endswith(_DATA):
        raise SpecError(
            f"{path} is a data file, not a spec: write a spec that names it as data.train{_specs_beside(path)}"
        )
    document = parse(_text(path), path)
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else "is not a mapping of keys to values"
        raise SpecError(f"{path}: {what}: a spec needs model and data. `fleetune spec` prints every field")
    # A change of `base` or `kind` comes first, because the fields that the others change may be in the base's file.
    early = [one for one in overrides if one.partition("=")[0].strip() in ("base", "kind")]
    for one in early:
        override(document, one)
    base = _take_in_base(document, path)
    for one in (one for one in overrides if one not in early):
        override(document, one)
    marks = {dotted(place): mark for place, mark in document.marks.items() if place}
    return Loaded(_checked(document).with_absolute_paths(base), marks)


def file_of_paths(path: str, marks: Mapping[str, Mark]) -> str:
    """Return the file that relative paths in a loaded spec refer to: that of a sweep's base, or else the spec's `path`.

    Args:
        marks: places of the spec's fields (see `Loaded`).
    """
    base = marks.get("base")
    is_file = base is not None and not base.line and base.source not in ("", SET)
    return absolute(base.source, folder_of(path)) if base is not None and is_file else path


def _take_in_base(document: Document, path: str) -> str:
    """Replace the path under `base` by the spec that it names.

    Returns the file that relative paths in the spec refer to: the base's, or `path` itself. Raises SpecError.
    """
    named = document.value.get("base") if document.value.get("kind") in SEARCHES else None
    if not isinstance(named, str):
        return path
    file = absolute(named, folder_of(path))
    try:
        base = parse(_text(file), named)
    except SpecError as error:
        raise _wrong(document, ("base",), str(error)) from error
    if not isinstance(base.value, dict):
        raise _wrong(document, ("base",), f"{named} is not a mapping of keys to values")
    document.value["base"] = base.value
    document.marks |= {("base", *place): mark for place, mark in base.marks.items()}
    document.problems += base.problems
    return file


def spec_of(value: Mapping[str, Any], reader: str = "release") -> AnySpec:
    """Read a spec from its own JSON, as `dump_spec` writes it; paths are not changed.

    Args:
        reader: name of the reading program, for the message about a spec of a newer schema.

    Raises:
        SpecError: all mistakes, one a line as `key: what is wrong`.
    """
    kind = value.get("kind", "finetune")
    model: type[AnySpec] | None = SPEC_MODELS.get(kind) if isinstance(kind, str) else None  # type: ignore[call-overload]
    if model is not None and (valid := valid_spec(value, model)) is not None:
        return valid
    try:
        copied = json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"a spec must be a mapping of keys to JSON values: {error}") from error
    return _checked(Document(copied, {(): Mark()}), reader)


def _checked(document: Document, reader: str = "release") -> AnySpec:
    """Check everything and return the spec. Raises SpecError with the mistakes, up to MOST_MISTAKES."""
    check_characters(document)
    version = document.value.get("version", SCHEMA_VERSION)
    if isinstance(version, int | float) and version > SCHEMA_VERSION:
        shown_version = str(version)[:_LONGEST_VERSION]
        what = f"written for schema version {shown_version}; this {reader} reads {SCHEMA_VERSION}: upgrade it"
        raise _wrong(document, ("version",), what)
    return check(document, SPEC_MODELS[_kind_of(document)], SPEC_MODELS)


def _wrong(document: Document, path: Path, message: str) -> SpecError:
    """Make the error for a mistake after which nothing else can be checked."""
    return SpecError.of([Mistake(message, dotted(path), str(document.mark(path)))])


def _kind_of(document: Document) -> Kind:
    """Find the kind, on which every other check depends. Raises SpecError."""
    values = document.value
    named = values.get("kind", "finetune")
    if "kind" not in values and "command" in values and "model" not in values:
        mark = document.mark(("command",))
        raise SpecError.of([Mistake("is missing: a spec with a command needs kind: command", "kind", str(mark))])
    if "kind" not in values and "base" in values and "model" not in values:
        mark, kind = document.mark(("base",)), "compare" if "methods" in values else "sweep"
        raise SpecError.of([Mistake(f"is missing: a spec with a base needs kind: {kind}", "kind", str(mark))])
    for kind in SPEC_MODELS:
        if named == kind:
            return kind
    hint = did_you_mean(str(named), SPEC_MODELS)
    message = f"must be finetune, command, sweep or compare, but is {shown(named, '')}{hint}"
    raise _wrong(document, ("kind",), message)


def dump_spec(spec: AnySpec) -> bytes:
    """Write the resolved spec as JSON. `load_job_spec` reads an equal spec from it."""
    return spec.model_dump_json(indent=1).encode() + b"\n"


def _text(path: str) -> str:
    if not path.strip():
        raise SpecError("the path of the spec is empty: is a shell variable not set?")
    if path == "-" or (storage.is_local(path) and _is_stream(storage.local_path(path))):
        raise SpecError(f"{path}: a spec is read from a file, since its paths are relative to it: save it first")
    if storage.is_local(path) and os.path.isdir(storage.local_path(path)):
        raise SpecError(f"{path} is a directory: give the spec's file{_specs_beside(path)}")
    try:
        return storage.read_bytes(path).decode("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): give the YAML or JSON file of a spec"
        ) from error
    except StorageError as error:
        raise SpecError(f"{error}{_specs_beside(path)}") from error


def _is_stream(path: str) -> bool:
    """Whether a path names a pipe, a socket, or a device such as a terminal."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _specs_beside(path: str) -> str:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    try:
        names = [name for name in os.listdir(folder or ".") if name.endswith((".yaml", ".yml", ".json"))]
    except OSError:
        return ""
    return did_you_mean(os.path.basename(path), names)
