"""From a file and `--set` to a Spec, or to one message that names every mistake and its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jobs import storage
from jobs.errors import SpecError, StorageError
from jobs.fields import ABSENT, did_you_mean, keys_of, section_model, spec_fields, unknown_key
from jobs.marks import Document, Path, dotted, parse, parse_value
from jobs.spec import SCHEMA_VERSION, Columns, Source, Spec

# Where Ray unpacks what `ray job submit --working-dir` ships; it is deleted some time after the job.
RAY_PACKAGE = "/runtime_resources/working_dir_files/"
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_SET = "--set"


def load_spec(path: str, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec from YAML or JSON; relative paths in it become absolute, relative to the file.

    Args:
        path: local path or fsspec URL.
        overrides: `train.learning_rate=1e-5` and so on; the value is YAML.

    Raises:
        SpecError: with all mistakes at once, one a line as `file:line: key: what is wrong`.
    """
    document = parse(_text(path), path)
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else "is no mapping of keys to values"
        raise SpecError(f"{path}: {what}: a spec needs model and data. `fleetune spec` prints every field")
    for override in overrides:
        _override(document, override)
    _check_version(document)
    problems = list(document.problems)
    meant = {target for target in _drop_unknown_keys(document, problems) if target}
    spec = _validate(document, problems, meant)
    if problems or spec is None:
        raise SpecError("\n".join(f"{mark}: {message}" for mark, message in sorted(problems, key=_line)))
    return _with_absolute_paths(spec, path)


def dump_spec(spec: Spec) -> bytes:
    """The resolved spec as JSON; `load_spec` of it gives an equal Spec."""
    return spec.model_dump_json(indent=1).encode() + b"\n"


def _text(path: str) -> str:
    if storage.is_local(path) and os.path.isdir(storage.local_path(path)):
        raise SpecError(f"{path} is a directory: give the spec's file{_specs_beside(path)}")
    try:
        return storage.read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error
    except StorageError as error:
        raise SpecError(f"{error}{_specs_beside(path)}") from error


def _specs_beside(path: str) -> str:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    try:
        names = [name for name in os.listdir(folder or ".") if name.endswith((".yaml", ".yml", ".json"))]
    except OSError:
        return ""
    return did_you_mean(os.path.basename(path), names)


def _override(document: Document, text: str) -> None:
    key, equals, raw = text.partition("=")
    path: Path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        document.problems.append((_SET, f"{text!r} is not KEY=VALUE, as train.learning_rate=1e-5 is"))
        return
    try:
        value = parse_value(raw, f"{_SET} {text}")
    except SpecError as error:
        document.problems.append((_SET, str(error).removeprefix(f"{_SET} ")))
        return
    section = document.value
    for depth, part in enumerate(path[:-1], 1):
        section[part] = section.get(part) or {}
        section = section[part]
        if not isinstance(section, dict):
            document.problems.append((_SET, f"{text}: {dotted(path[:depth])} is a value, not a section"))
            return
    section[path[-1]] = value
    for known in [known for known in document.marks if known[: len(path)] == path]:
        del document.marks[known]
    document.marks[path] = _SET


def _check_version(document: Document) -> None:
    version = document.value.get("version", SCHEMA_VERSION)
    if isinstance(version, int | float) and version > SCHEMA_VERSION:
        raise SpecError(
            f"{document.mark(('version',))}: written for schema version {version}; "
            f"this release reads {SCHEMA_VERSION}: upgrade Fleetune"
        )


def _drop_unknown_keys(document: Document, problems: list[tuple[str, str]]) -> Iterator[str | None]:
    """Report and remove keys that no section has; yields the fields that were probably meant."""
    for section, values in list(_sections(document.value, Spec, ())):
        for key in [key for key in values if key not in keys_of(dotted(section))]:
            message, target = unknown_key(dotted(section), key)
            problems.append((document.mark((*section, key)), f"{dotted((*section, key))}: {message}"))
            del values[key]
            yield target


def _sections(values: dict[str, Any], model: type[BaseModel], path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All sections that are there; one whose keys are all commented out counts as an empty one."""
    yield path, values
    for name, info in model.model_fields.items():
        inner = section_model(info)
        if inner is None or name not in values:
            continue
        if values[name] is None:
            values[name] = {}
        if isinstance(values[name], dict):
            yield from _sections(values[name], inner, (*path, name))


def _validate(document: Document, problems: list[tuple[str, str]], meant: set[str]) -> Spec | None:
    try:
        return Spec.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            place = _as_written(document, one["loc"])
            name = dotted(place)
            if one["type"] == "missing" and name in meant:
                continue  # said already: the key is there under another name
            message = _reworded(name, one["type"], one.get("ctx", {}), one["input"])
            problems.append((document.mark(place), f"{name}: {message}" if name else message))
    return None


def _as_written(document: Document, place: Path) -> Path:
    """A source that stands alone is written without the list that it is checked as."""
    head, rest = place[:2], place[2:]
    if rest[:1] == (0,) and head in (("data", "train"), ("data", "eval")):
        written = document.value["data"][head[1]]
        return place if isinstance(written, list) else (*head, *rest[1:])
    return place


def _reworded(name: str, kind: str, context: dict[str, Any], value: Any) -> str:
    """The message of one of pydantic's errors, in words for people who never heard of it."""
    info = spec_fields().get(name) or _field_of_a_source(name)
    about = (info.description or "") if info else ""
    if kind == "extra_forbidden":
        return _unknown_key_of_a_source(name)
    if kind == "missing":
        needs = [key for key in keys_of(name) if spec_fields()[f"{name}.{key}"].is_required()]
        return f"is missing. {about}" + (f" It needs {' and '.join(needs)}." if needs else "")
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        hint = ABSENT.get(str(value)) or did_you_mean(str(value), re.split(r", | or ", choices)).removeprefix("; ")
        return f"must be {choices}, but is {_shown(value, '')}" + (f"; {hint}" if hint else "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        keys = keys_of(name) or (Columns if name.endswith("columns") else Source).model_fields
        return f"must be a section with keys of its own ({', '.join(keys)}), but is {_shown(value)}"
    if kind == "string_pattern_mismatch":
        return f"{_shown(value, '')} does not fit. {about}"
    text = _MUST_BE.get(kind)
    return f"must be {text.format(**context)}, but is {_shown(value)}" if text else f"{kind}: {_shown(value)}. {about}"


def _field_of_a_source(name: str) -> FieldInfo | None:
    """The field that is meant by data.train.0.weight and the like."""
    return {**Columns.model_fields, **Source.model_fields}.get(name.rpartition(".")[2])


def _unknown_key_of_a_source(name: str) -> str:
    section, _, key = name.rpartition(".")
    keys = (Columns if section.endswith("columns") else Source).model_fields
    return f"unknown key{did_you_mean(key, keys) or '; a source has ' + ', '.join(keys)}"


_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (in quotes)",
    "tuple_type": "a list (in square brackets)",
    "too_short": "a list of {min_length} or more",
    "string_too_short": "some text",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}


def _shown(value: Any, kind: str = "the text ") -> str:
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f'{kind}"{value}"' if value.strip() else "empty"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(problem: tuple[str, str]) -> tuple[str, int]:
    source, _, line = problem[0].rpartition(":")
    return (source, int(line)) if line.isdigit() else (problem[0], 0)


def _with_absolute_paths(spec: Spec, path: str) -> Spec:
    base = os.path.dirname(path) if storage.is_url(path) else os.path.dirname(os.path.abspath(path))
    root = _absolute(spec.storage_path, base)
    if RAY_PACKAGE in root:
        raise SpecError(
            f"storage_path {spec.storage_path} lies in the package that Ray unpacked for this job, and would vanish "
            "with it: give a directory that every node sees, or a URL, as --set storage_path=/shared/runs"
        )
    data = {name: _absolute_sources(getattr(spec.data, name), base) for name in ("train", "eval")}
    model = {"path": _model_path(spec.model.path, base)}
    update = {"storage_path": root, "data": spec.data.model_copy(update=data)}
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
    """A directory becomes absolute; what is none, and looks like one of the hub's names, stays."""
    local = path.startswith(("./", "../", "/", "~")) or path in (".", "..") or not _HUB_ID.match(path)
    return _absolute(path, base) if local or os.path.isdir(os.path.join(base, path)) else path
