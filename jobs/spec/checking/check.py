"""Checks a parsed spec of any kind, and raises one error that names every mistake and its line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cluster.errors import Mistake, SpecError
from jobs.spec.checking.fields import Models, keys_of, section_model, unknown_key
from jobs.spec.checking.lines import Document, Path, dotted
from jobs.spec.checking.mistakes import KEY, reworded
from jobs.spec.queue import MOST_KEYS

_LONGEST_KEY = 100
_HALF = re.compile("[\ud800-\udfff]")
_DEEPEST = 8  # levels at which the keys of mappings are counted; the fields of a spec nest less deeply
MOST_MISTAKES = 50  # reported for one spec: each one costs time to describe, and a reader needs no more

Model = TypeVar("Model", bound=BaseModel)


def valid_spec(value: Mapping[str, Any], model: type[Model]) -> Model | None:
    """Return the spec if it has no mistakes, else None. Takes half the time of `check`, which describes mistakes."""

    if too_large(value) is not None:
        return None
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except (ValueError, TypeError, RecursionError):  # pydantic's ValidationError is a ValueError
        return None


def check(document: Document, model: type[Model], others: Models | None = None) -> Model:
    """Check everything and return the spec.

    Args:
        model: class of the spec.
        others: classes of all kinds of specs, to tell that a key belongs to another kind.

    Raises:
        SpecError: the mistakes, up to MOST_MISTAKES.
    """
    check_characters(document)
    del document.problems[MOST_MISTAKES:]
    meant = {target for target in _drop_unknown_keys(document, model, others or {}) if target}
    if (large := too_large(document.value)) is not None:
        path, what = large
        document.add_problem(document.mark(path), what, _short(dotted(path)))
    spec = None if large else _validate(document, model, meant)
    if document.problems or spec is None:
        mistakes = [mistake for _, mistake in sorted(document.problems, key=lambda problem: problem[0])]
        if len(mistakes) >= MOST_MISTAKES:
            mistakes.append(Mistake(f"no more than {MOST_MISTAKES} mistakes are looked for: there may be others"))
        raise SpecError.of(mistakes)
    return spec


def check_characters(document: Document) -> None:
    """Raise SpecError if a text has half of a surrogate pair, as in "\\ud800", which UTF-8 cannot store."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):  # then text by text
        if not _HALF.search(json.dumps(document.value, ensure_ascii=False)):
            return
    places = islice(_halves(document.value), MOST_MISTAKES)
    if mistakes := [Mistake(what, _short(dotted(path)), str(document.mark(path))) for path, what in places]:
        raise SpecError.of(mistakes)


def _halves(value: Any) -> Iterator[tuple[Path, str]]:
    """Yield the paths of texts with half of a surrogate pair, and messages about them."""
    waiting: list[tuple[Path, Any]] = [((), value)]  # no recursion: values may be nested deeply
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, str) and (half := _HALF.search(one)):
            yield path, f"has half of a character ({half[0]!a}): write the whole character"
        inner = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for name, within in reversed(list(inner)):
            if isinstance(name, str) and (half := _HALF.search(name)):
                yield path, f"has a key with half of a character ({half[0]!a}): write the whole character"
            else:
                waiting.append(((*path, name), within))


def _short(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}..."


def _drop_unknown_keys(document: Document, model: type[BaseModel], others: Models) -> Iterator[str | None]:
    """Report and remove keys that no section has; yield the fields that were probably meant."""
    for section, values in list(_sections(document.value, model, ())):
        known = frozenset(keys_of(dotted(section), model))
        for key in [key for key in values if key not in known]:
            if len(document.problems) >= MOST_MISTAKES:
                del values[key]
                continue
            message, target = unknown_key(dotted(section), key, model, others)
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
    within = ((name, one) for name, one in inner if isinstance(one, dict | list))
    return next((found for name, one in within if (found := too_large(one, (*path, name)))), None)


def _validate(document: Document, model: type[Model], meant: set[str]) -> Model | None:
    try:
        return model.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        # If any field is wrong, pydantic also reports every default that is computed from other fields.
        found = [one for one in error.errors(include_url=False) if one["type"] != "default_factory_not_called"]
        told = (one for one in found if not _seems_short(one["loc"], one["type"], found))
        for one in islice(told, max(MOST_MISTAKES - len(document.problems), 0)):
            place = _as_written(document, one["loc"])
            name = dotted(place)
            if one["type"] == "missing" and name in meant:
                continue  # reported already: the key is present under another name
            message = reworded(model, name, one["type"], one.get("ctx", {}), one["input"])
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
    if rest[:1] == (0,) and head in (("data", "train"), ("data", "eval"), ("eval", "general")):
        written = document.value[head[0]][head[1]]
        return place if isinstance(written, list) else (*head, *rest[1:])
    return place
