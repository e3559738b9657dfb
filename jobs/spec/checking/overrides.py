"""Changes of single fields that a command line asks for: `--set train.learning_rate=1e-5`."""

from __future__ import annotations

from typing import Any, Final

from cluster.errors import Mistake, SpecError
from jobs.spec.checking.lines import Document, Mark, Path, dotted, parse_value
from jobs.spec.space import Range

SET: Final = "--set"


def override_value(text: str) -> tuple[str, Any]:
    """Return the dotted name and the value of one `--set KEY=VALUE`. Raises SpecError."""
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        what = f"{text!r} must be KEY=VALUE, such as train.learning_rate=1e-5"
        raise SpecError.of([Mistake(what, place=SET)])
    return ".".join(parts), parse_value(raw, f"{SET}: {text}")


def override(document: Document, text: str) -> None:
    """Set one field of a document, or add the mistake to its problems."""
    try:
        name, value = override_value(text)
    except SpecError as error:
        document.problems += [(Mark(SET), mistake) for mistake in error.mistakes]
        return
    path: Path = ()
    section: Any = document.value
    *sections, last = _keys(name)
    for part in sections:
        place = _place_in(section, part)
        if place is None:
            break
        if isinstance(section, dict) and section.get(place) is None:
            section[place] = {}
            document.marks[*path, place] = Mark(SET)
        section, path = section[place], (*path, place)
    place = _place_in(section, last) if len(path) == len(sections) else None
    if place is None:
        what = "is a value, not a section"
        if isinstance(section, list):
            what = f"is a list whose last entry has the number {len(section) - 1}" if section else "is an empty list"
        document.add_problem(Mark(SET), f"{text}: {dotted(path)} {what}")
        return
    section[place], path = value, (*path, place)
    for known in [known for known in document.marks if known[: len(path)] == path]:
        del document.marks[known]
    document.marks[path] = Mark(SET)


def _keys(name: str) -> list[str]:
    """Split a dotted name into keys. Below `space`, a dotted name is one key; a field of a range may follow."""
    keys = name.split(".")
    if keys[0] != "space" or len(keys) < 3:
        return keys
    end = -1 if keys[-1] in Range.model_fields else len(keys)
    return ["space", ".".join(keys[1:end]), *keys[end:]]


def _place_in(section: Any, part: str) -> str | int | None:
    """Return the key or the index that a part of a dotted name means; None if the section has no such place."""
    if isinstance(section, dict):
        return part
    is_index = isinstance(section, list) and part.isdecimal() and int(part) < len(section)
    return int(part) if is_index else None
