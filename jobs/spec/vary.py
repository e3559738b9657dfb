"""The base of all kinds of specs. Makes many specs from one, for each combination of some fields' values."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from pydantic import BaseModel

from cluster.errors import Mistake, SpecError
from cluster.text import did_you_mean
from jobs.frozen import Frozen
from jobs.spec.bounds import LONGEST_NAME
from jobs.spec.checking.check import check, valid_spec
from jobs.spec.checking.fields import homes_of, kind_of, other_kind, section_model, spec_fields, unknown_key
from jobs.spec.checking.lines import Document, Mark, parse_value
from jobs.spec.queue import Queue

MOST_SPECS: Final = 10_000
# Pairs of fields that set the same thing: a change of one of them clears the other.
EITHER_IN_TRAIN: Final = (
    ("warmup_ratio", "warmup_steps"),
    ("num_train_epochs", "max_steps"),
    ("global_batch_size", "global_batch_tokens"),
)
_EITHER: Final = (("data.eval", "data.eval_fraction"), *((f"train.{a}", f"train.{b}") for a, b in EITHER_IN_TRAIN))
SAME_SETTING: Final = {**dict(_EITHER), **{other: one for one, other in _EITHER}}  # by field: the other one of its pair
_PATHS: Final = frozenset(
    {"model.path", "data.train", "data.eval", "eval.general", "eval.lm_eval.tasks", "storage_path", "working_dir"}
)
_LONGEST_VALUE = 20
SWEEP: Final = "--sweep"


class JobSpec(Frozen):
    """The base of all kinds of specs: the fields and methods that they have in common."""

    if TYPE_CHECKING:  # each kind declares these fields itself, with its own description and at its own place
        name: str
        queue: Queue

    def with_absolute_paths(self, path: str) -> Self:
        """Make relative paths absolute, relative to a spec's file at `path`. Raises SpecError."""
        raise NotImplementedError

    def vary(self, fields: Mapping[str, Iterable[Any]] | None = None, /, **named: Iterable[Any]) -> list[Self]:
        """Make a spec for each combination of values, as in `vary(learning_rate=[1e-5, 2e-5])`.

        The last field changes fastest. The name and the labels of each spec show its values.

        Args:
            fields: values by field: `train.learning_rate`, or the last part alone if only one field can be meant (a
                field under `train` is preferred); for a command also `env.NAME`. Values are those that a file may
                have. Relative paths are relative to the working directory.

        Raises:
            SpecError: all mistakes in names and values.
        """
        return varied(self, {**(fields or {}), **named}, os.path.join(os.getcwd(), "spec"))


AnyJob = TypeVar("AnyJob", bound=JobSpec)


def varied(spec: AnyJob, fields: Mapping[str, Iterable[Any]], file: str) -> list[AnyJob]:
    """Make a spec for each combination of values, as `JobSpec.vary` does, with paths relative to the file at `file`.

    Raises SpecError with all mistakes in names and values.
    """
    values = _values_by_field(type(spec), fields)
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    # Warnings are off because a copied spec may hold a dictionary in place of a section; it is checked later.
    base, problems, made = spec.model_dump(mode="json", warnings=False), dict[Mistake, None](), list[AnyJob]()
    for changes in combinations:
        try:
            made.append(_changed(type(spec), base, changes, file))
        except SpecError as error:
            problems |= dict.fromkeys(error.mistakes)
    if problems:
        raise SpecError.of(problems)
    names = _names([one.name for one in made], values, combinations)
    return [
        one.model_copy(update={"name": name, "queue": one.queue.labelled(changes)})
        for one, changes, name in zip(made, combinations, names, strict=True)
    ]


def sweep_values(options: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `--sweep` options: `train.learning_rate=1e-5,5e-5`, or a YAML list after the `=`.

    Raises:
        SpecError: the mistakes of all options.
    """
    fields, problems = dict[str, list[Any]](), list[Mistake]()
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        if not equals or not key or not text.strip():
            what = f"{option!r} must be KEY=VALUE,VALUE, such as train.learning_rate=1e-5,5e-5"
            problems.append(Mistake(what, place=SWEEP))
            continue
        if key in fields:
            problems.append(Mistake(f"{key} is given twice: give all its values in one option", place=SWEEP))
            continue
        is_list = text.lstrip().startswith("[")
        parts = [text] if is_list else text.split(",")
        if key.startswith("env.") and not is_list:  # variables are text, even if they look like numbers
            fields[key] = [part.strip() for part in parts]
            continue
        if len(parts) > 1 and not all(part.strip() for part in parts):
            what = f"{key} has an empty value among {text}: leave it out, or write null to vary without the field too"
            problems.append(Mistake(what, place=SWEEP))
            continue
        try:
            values = [parse_value(part.strip(), f"{SWEEP} {option}") for part in parts]
        except SpecError as error:
            problems += error.mistakes
            continue
        fields[key] = values[0] if isinstance(values[0], list) and len(values) == 1 else values
    if problems:
        raise SpecError.of(problems)
    return fields


def _values_by_field(model: type[BaseModel], fields: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    values, problems = dict[str, list[Any]](), list[Mistake]()
    for given, wanted in fields.items():
        try:
            name, found = field_varied(model, given), _list_of(given, wanted)
            if name in values:
                raise SpecError.at(given, f"{name} is given twice")
            values[name] = found
        except SpecError as error:
            problems += error.mistakes
    if not fields:
        problems.append(Mistake("nothing is varied: give fields with their values, as learning_rate=[1e-5, 2e-5]"))
    if problems:
        raise SpecError.of(problems)
    count = math.prod(map(len, values.values()))
    if count > MOST_SPECS:
        raise SpecError(
            f"these are {count:,} combinations, but at most {MOST_SPECS:,} are made at once: give fewer values"
        )
    return values


def field_varied(model: type[BaseModel], given: str) -> str:
    """Return the dotted name of the field that `vary` changes for this name or its last part. Raises SpecError."""
    fields = spec_fields(model)
    if "env" in model.model_fields and given.startswith("env.") and len(given) > len("env."):
        return given
    homes = [given] if given in fields else homes_of(given, model)
    if not homes:
        section, _, key = given.rpartition(".")
        kinds = {kind_of(one): one for one in JobSpec.__subclasses__()}
        if section and section not in fields and not other_kind(given, model, kinds):
            raise SpecError.at(given, f"there is no section {section}{did_you_mean(given, fields)}")
        raise SpecError.at(given, unknown_key(section, key, model, kinds)[0])
    in_train = [name for name in homes if name.startswith("train.")]
    chosen = homes if len(homes) == 1 else in_train
    if len(chosen) != 1:
        what = f"may mean {' or '.join(homes)}: give one of these, as vary({{{homes[0]!r}: [...]}})"
        raise SpecError.at(given, what)
    if section_model(fields[chosen[0]]) or chosen[0] in ("version", "kind"):
        what = "is a section: vary the fields in it" if section_model(fields[chosen[0]]) else "cannot be varied"
        raise SpecError.at(given, what)
    return chosen[0]


def _list_of(given: str, wanted: Any) -> list[Any]:
    """Return plain JSON values from any sequence, numpy arrays included. Raises SpecError."""
    if isinstance(wanted, str | bytes | Mapping) or not isinstance(wanted, Iterable):
        raise SpecError.at(given, f"give a list of values, as {given}=[{wanted!r}]")
    try:
        values: list[Any] = json.loads(json.dumps(list(wanted), default=lambda value: value.item()))
    except (AttributeError, TypeError, ValueError) as error:
        raise SpecError.at(given, f"holds a value that a spec cannot have: {error}") from error
    if not values:
        raise SpecError.at(given, "has no values")
    return values


def _changed(model: type[AnyJob], base: Mapping[str, Any], changes: Mapping[str, Any], file: str) -> AnyJob:
    """Return the spec with these changes, whose paths are relative to the file at `file`. Raises SpecError."""
    value = json.loads(json.dumps(base))
    prefix = "base." if "base" in model.model_fields else ""
    for name, new in changes.items():
        same = SAME_SETTING.get(name.removeprefix(prefix))
        other = same and f"{prefix}{same}"
        if other is not None and new is not None and other not in changes:
            set_value(value, other, None)
        set_value(value, name, new)
    spec = valid_spec(value, model) or check(Document(value, {(): Mark()}), model)
    if not any(f"{prefix}{name}" in changes for name in _PATHS):
        return spec
    absolute, job = spec.with_absolute_paths(file), getattr(spec, "base", spec)
    if hasattr(job, "model") and f"{prefix}model.path" not in changes:
        # A model's hub id may also be the name of a directory there: do not turn it into that directory's path.
        absolute = absolute.with_value(f"{prefix}model", job.model)
    return absolute


def set_value(value: Any, name: str, new: Any) -> None:
    """Set the field with this dotted name in a dumped spec, as `train.learning_rate` or `data.train.0.weight`."""
    *sections, key = name.split(".")
    for section in sections:
        value = value[int(section)] if isinstance(value, list) else value.setdefault(section, {})
    value[key] = new


def _names(
    bases: Sequence[str], values: Mapping[str, list[Any]], combinations: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield distinct names such as `rotten-lr2e-05-wr0.1`."""
    short, seen = _short_names([name for name in values if name != "name"]), set[str]()
    for base, changes in zip(bases, combinations, strict=True):
        parts = [f"{label}{_in_a_name(changes[name], values[name])}" for name, label in short.items()]
        name = _fitting(base, "".join(f"-{part}" for part in parts), seen)
        seen.add(name)
        yield name


def _fitting(base: str, suffix: str, taken: set[str]) -> str:
    """Join base and suffix to a name that is not taken. The base is shortened; a number replaces a long suffix."""
    endings: Iterator[str] = (f"{suffix}-{number}" for number in itertools.count(2))
    if len(suffix) > LONGEST_NAME * 3 // 4:
        endings = (f"-{number}" for number in itertools.count(1))
    elif suffix or base not in taken:
        endings = itertools.chain([suffix], endings)
    names = (f"{base[: LONGEST_NAME - len(ending)].rstrip('.-_') or base[:1]}{ending}" for ending in endings)
    return next(name for name in names if name not in taken)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Abbreviate each last part to its initials (lr for learning_rate), unless two would be equal or it is one word."""
    last = {name: name.rpartition(".")[2].lower() for name in names}
    short = {name: _initials(part) for name, part in last.items()}
    twice = [label for label in short.values() if list(short.values()).count(label) > 1]
    return {name: (last[name] if label in twice else label) for name, label in short.items()}


def _initials(part: str) -> str:
    words = [word for word in part.split("_") if word]
    return part if len(words) < 2 else "".join(word[0] for word in words)


def _in_a_name(value: Any, among: list[Any]) -> str:
    if isinstance(value, list | dict):
        return str(among.index(value) + 1)
    if isinstance(value, float):
        text = f"{value:.6g}".replace("e+", "e")
    elif isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2]
    else:
        text = json.dumps(value)
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:_LONGEST_VALUE].strip("-") or "0"
