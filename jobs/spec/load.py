"""Reads a spec of any kind from a file and `--set`, or raises one error that names every mistake and its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from cluster.errors import Mistake
from cluster.ray.runtime_env import RAY_PACKAGE
from cluster.text import did_you_mean
from jobs.errors import SpecError, StorageError
from jobs.spec.checking.fields import SPEC_MODELS, keys_of, section_model, unknown_key
from jobs.spec.checking.lines import Document, Mark, Path, dotted, parse, parse_value
from jobs.spec.checking.mistakes import KEY, reworded, shown
from jobs.spec.command import CommandSpec
from jobs.spec.data import Source
from jobs.spec.finetune import SCHEMA_VERSION, Spec
from jobs.spec.queue import MOST_KEYS, Kind
from jobs.spec.references import run_named
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_SET = "--set"
_DATA = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet", ".arrow", ".gz", ".safetensors")

AnySpec = Spec | CommandSpec | SweepSpec
_LONGEST_KEY, _LONGEST_VERSION = 100, 40
_DEEPEST = 8  # levels at which the keys of mappings are counted; the fields of a spec nest less deeply
MOST_MISTAKES = 50  # reported for one spec: each one costs time to describe, and a reader needs no more


def load_spec(path: str, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec that trains, from YAML or JSON. Relative paths in it become absolute, relative to the file.

    Args:
        path: local path or fsspec URL.
        overrides: such as `train.learning_rate=1e-5`; the value is YAML.

    Raises:
        SpecError: all mistakes, one a line as `file:line: key: what is wrong`; or the spec is of another kind.
    """
    return training(load_job_spec(path, overrides), path)


def trained(spec: AnySpec) -> Spec | None:
    """Return the job that a spec trains: the spec, or a sweep's base job; None for a command."""
    if isinstance(spec, SweepSpec):
        return spec.base
    return spec if isinstance(spec, Spec) else None


def training(spec: AnySpec, path: str) -> Spec:
    """Return the spec, which was read from `path`, if it is of kind finetune. Raises SpecError."""
    if isinstance(spec, CommandSpec):
        raise SpecError(
            f"{path} is of kind command, and nothing is trained with it here. Submit it to the queue: "
            f"fleetune submit {path}"
        )
    if isinstance(spec, SweepSpec):
        raise SpecError(f"{path} is of kind sweep, and a single job is needed here: fleetune run {path} runs the sweep")
    return spec


def load_job_spec(path: str, overrides: Sequence[str] = ()) -> AnySpec:
    """Read a spec of any kind, as `load_spec` does. Raises SpecError."""
    return load_marked(path, overrides).spec


@dataclass(frozen=True)
class Loaded:
    """A spec, and by dotted name the place where each field is written (`job.yaml:12`, or `--set`)."""

    spec: AnySpec
    marks: Mapping[str, Mark]


def load_marked(path: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a spec of any kind together with the places of its fields. Raises SpecError."""
    return Loaded(*_read(path, overrides))


def load_to_run(path: str, overrides: Sequence[str] = ()) -> Spec | SweepSpec:
    """Read the spec of a job or a sweep. Raises SpecError, also for a command, which only the queue runs."""
    spec, _ = _read(path, overrides)
    return spec if isinstance(spec, SweepSpec) else training(spec, path)


def load_sweep(path: str, overrides: Sequence[str] = ()) -> SweepSpec | None:
    """Read the spec of a sweep; None if the file holds a spec of another kind. Raises SpecError."""
    spec, _ = _read(path, overrides)
    return spec if isinstance(spec, SweepSpec) else None


def _read(path: str, overrides: Sequence[str]) -> tuple[AnySpec, Mapping[str, Mark]]:
    """Return the spec, and the places of its fields by dotted name. Raises SpecError."""
    if path.lower().endswith(_DATA):
        raise SpecError(
            f"{path} is a data file, not a spec: write a spec that names it as data.train{_specs_beside(path)}"
        )
    document = parse(_text(path), path)
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else "is not a mapping of keys to values"
        raise SpecError(f"{path}: {what}: a spec needs model and data. `fleetune spec` prints every field")
    base = _take_in_base(document, path)
    for override in overrides:
        _override(document, override)
    checked, marks = _checked(document), {dotted(place): mark for place, mark in document.marks.items() if place}
    return with_absolute_paths(checked, base), marks


def _take_in_base(document: Document, path: str) -> str:
    """Replace the path under a sweep's `base` by the spec that it names.

    Returns the file that relative paths in the spec refer to: the base's, or `path` itself. Raises SpecError.
    """
    named = document.value.get("base") if document.value.get("kind") == "sweep" else None
    if not isinstance(named, str):
        return path
    file = _absolute(named, os.path.dirname(path) if storage.is_url(path) else os.path.dirname(os.path.abspath(path)))
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
    if (valid := _valid(value)) is not None:
        return valid
    try:
        copied = json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"a spec must be a mapping of keys to JSON values: {error}") from error
    return _checked(Document(copied, {(): Mark()}), reader)


def _valid(value: Mapping[str, Any]) -> AnySpec | None:
    """Return the spec if it has no mistakes, in half the time of `_checked`; None: it has some."""
    kind = value.get("kind", "finetune")
    model = SPEC_MODELS.get(kind) if isinstance(kind, str) else None  # type: ignore[call-overload]
    if model is None or _is_newer(value) or too_large(value) is not None:
        return None
    try:
        return cast(AnySpec, model.model_validate_json(json.dumps(value), strict=True))
    except (ValidationError, ValueError, TypeError, RecursionError):
        return None


def _checked(document: Document, reader: str = "release") -> AnySpec:
    """Check everything and return the spec. Raises SpecError with the mistakes, up to MOST_MISTAKES."""
    if _is_newer(document.value):
        version = str(document.value["version"])[:_LONGEST_VERSION]
        what = f"written for schema version {version}; this {reader} reads {SCHEMA_VERSION}: upgrade it"
        raise _wrong(document, ("version",), what)
    kind = _kind_of(document)
    del document.problems[MOST_MISTAKES:]
    meant = {target for target in _drop_unknown_keys(document, kind) if target}
    if (large := too_large(document.value)) is not None:
        path, what = large
        document.add_problem(document.mark(path), what, _short(dotted(path)))
    spec = None if large else _validate(document, kind, meant)
    if document.problems or spec is None:
        mistakes = [mistake for _, mistake in sorted(document.problems, key=lambda problem: problem[0])]
        if len(mistakes) >= MOST_MISTAKES:
            mistakes.append(Mistake(f"no more than {MOST_MISTAKES} mistakes are looked for: there may be others"))
        raise SpecError.of(mistakes)
    return spec


def _short(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}..."


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
    for kind in SPEC_MODELS:
        if named == kind:
            return kind
    hint = did_you_mean(str(named), SPEC_MODELS)
    message = f"must be finetune, command or sweep, but is {shown(named, '')}{hint}"
    raise _wrong(document, ("kind",), message)


def dump_spec(spec: AnySpec) -> bytes:
    """Write the resolved spec as JSON. `load_job_spec` reads an equal spec from it."""
    return spec.model_dump_json(indent=1).encode() + b"\n"


def _text(path: str) -> str:
    if storage.is_local(path) and os.path.isdir(storage.local_path(path)):
        raise SpecError(f"{path} is a directory: give the spec's file{_specs_beside(path)}")
    try:
        return storage.read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): give the YAML or JSON file of a spec"
        ) from error
    except StorageError as error:
        raise SpecError(f"{error}{_specs_beside(path)}") from error


def _specs_beside(path: str) -> str:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    try:
        names = [name for name in os.listdir(folder or ".") if name.endswith((".yaml", ".yml", ".json"))]
    except OSError:
        return ""
    return did_you_mean(os.path.basename(path), names)


def override_value(text: str) -> tuple[str, Any]:
    """Return the dotted name and the value of one `--set`. Raises SpecError."""
    key, _, raw = text.partition("=")
    return ".".join(part.strip() for part in key.split(".")), parse_value(raw, f"{_SET} {text}")


def _override(document: Document, text: str) -> None:
    key, equals, raw = text.partition("=")
    path: Path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        document.add_problem(Mark(_SET), f"{text!r} must be KEY=VALUE, such as train.learning_rate=1e-5")
        return
    try:
        value = parse_value(raw, text)
    except SpecError as error:
        document.add_problem(Mark(_SET), str(error))
        return
    section = document.value
    for depth, part in enumerate(path[:-1], 1):
        section[part] = section.get(part) or {}
        section = section[part]
        if not isinstance(section, dict):
            document.add_problem(Mark(_SET), f"{text}: {dotted(path[:depth])} is a value, not a section")
            return
    section[path[-1]] = value
    for known in [known for known in document.marks if known[: len(path)] == path]:
        del document.marks[known]
    document.marks[path] = Mark(_SET)


def _is_newer(value: Mapping[str, Any]) -> bool:
    version = value.get("version", SCHEMA_VERSION)
    return isinstance(version, int | float) and version > SCHEMA_VERSION


def _drop_unknown_keys(document: Document, kind: Kind) -> Iterator[str | None]:
    """Report and remove keys that no section has; yield the fields that were probably meant."""
    for section, values in list(_sections(document.value, SPEC_MODELS[kind], ())):
        known = frozenset(keys_of(dotted(section), kind))
        for key in [key for key in values if key not in known]:
            if len(document.problems) >= MOST_MISTAKES:
                del values[key]
                continue
            message, target = unknown_key(dotted(section), key, kind)
            document.add_problem(document.mark((*section, key)), message, dotted((*section, _short(key))))
            del values[key]
            yield target


def _sections(values: dict[str, Any], model: type[BaseModel], path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield all sections that are present; a section whose keys are all commented out counts as empty."""
    yield path, values
    for name, info in model.model_fields.items():
        inner = section_model(info)
        if inner is None or name not in values:
            continue
        if values[name] is None:
            values[name] = {}
        if isinstance(values[name], dict):
            yield from _sections(values[name], inner, (*path, name))


def too_large(value: Any, path: Path = ()) -> tuple[Path, str] | None:
    """Find a mapping with more keys than any field allows: its path and a message, or None. Pure.

    This runs before the keys are checked one by one, which would take long.
    """
    if isinstance(value, dict) and len(value) > MOST_KEYS:
        return path, f"has {len(value):,} keys, but at most {MOST_KEYS:,} are allowed"
    if len(path) == _DEEPEST:
        return None
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for name, one in inner if (found := too_large(one, (*path, name)))), None)


def _validate(document: Document, kind: Kind, meant: set[str]) -> AnySpec | None:
    try:
        return SPEC_MODELS[kind].model_validate_json(json.dumps(document.value), strict=True)  # type: ignore[return-value]
    except ValidationError as error:
        # If any field is wrong, pydantic also reports every default that is computed from other fields.
        found = [one for one in error.errors(include_url=False) if one["type"] != "default_factory_not_called"]
        told = (one for one in found if not _seems_short(one["loc"], one["type"], found))
        for one in islice(told, max(MOST_MISTAKES - len(document.problems), 0)):
            place = _as_written(document, one["loc"])
            name = dotted(place)
            if one["type"] == "missing" and name in meant:
                continue  # reported already: the key is present under another name
            message = reworded(kind, name, one["type"], one.get("ctx", {}), one["input"])
            document.add_problem(document.mark(place), message, name.removesuffix(f".{KEY}"))
    return None


def _seems_short(place: Path, kind: str, found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an error only says that a list is too short because its check ended at the first wrong item."""
    return kind == "too_short" and any(one["loc"][: len(place)] == place != one["loc"] for one in found)


def _as_written(document: Document, place: Path) -> Path:
    """Translate pydantic's place to the written one: no index for a single source, no tag for a range or list."""
    if place[:1] == ("space",):
        return (*place[:2], *place[3:])
    if place[:1] == ("base",):
        inner = document.value.get("base")
        return ("base", *_as_written(Document(inner), place[1:])) if isinstance(inner, dict) else place
    head, rest = place[:2], place[2:]
    if rest[:1] == (0,) and head in (("data", "train"), ("data", "eval")):
        written = document.value["data"][head[1]]
        return place if isinstance(written, list) else (*head, *rest[1:])
    return place


def with_absolute_paths(spec: AnySpec, path: str) -> AnySpec:
    """Make relative paths absolute, relative to a spec's file at `path`. Raises SpecError."""
    if isinstance(spec, SweepSpec):
        return spec.model_copy(update={"base": with_absolute_paths(spec.base, path)})
    base = os.path.dirname(path) if storage.is_url(path) else os.path.dirname(os.path.abspath(path))
    working_dir = None if spec.working_dir is None else _absolute(spec.working_dir, base)
    if working_dir is not None and storage.is_url(working_dir):
        what = f"{working_dir} is a URL, and programs run in directories: give one that nodes see"
        raise SpecError.at("working_dir", what)
    if isinstance(spec, CommandSpec):
        return spec.model_copy(update={"working_dir": working_dir})
    root = _absolute(spec.storage_path, base)
    if RAY_PACKAGE in root:  # Ray deletes this directory some time after the job
        raise SpecError(
            f"storage_path {spec.storage_path} lies in the package that Ray unpacked for this job, and would be "
            "deleted with it. Give a directory that every node sees, or a URL, as --set storage_path=/shared/runs"
        )
    data = {name: _absolute_sources(getattr(spec.data, name), base) for name in ("train", "eval")}
    model = {"path": _model_path(spec.model.path, base)}
    update = {"storage_path": root, "working_dir": working_dir, "data": spec.data.model_copy(update=data)}
    return spec.model_copy(update={**update, "model": spec.model.model_copy(update=model)})


def _absolute_sources(sources: tuple[Source, ...] | None, base: str) -> tuple[Source, ...] | None:
    if sources is None:
        return None
    return tuple(source.model_copy(update={"path": _absolute(source.path, base)}) for source in sources)


def _absolute(path: str, base: str) -> str:
    if storage.is_url(path):
        return path
    path = os.path.expanduser(path)
    if storage.is_url(base) and not os.path.isabs(path):
        return storage.join(base, path.removeprefix("./"))
    return os.path.normpath(os.path.join(base, path))


def _model_path(path: str, base: str) -> str:
    """Make the path of a directory absolute. Names of the hub and `run:NAME` are not changed."""
    if run_named(path) is not None:
        return path
    local = path.startswith(("./", "../", "/", "~")) or path in (".", "..") or not _HUB_ID.match(path)
    return _absolute(path, base) if local or os.path.isdir(os.path.join(base, path)) else path
