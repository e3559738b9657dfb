"""Changes of single fields that a command line asks for: `--set train.learning_rate=1e-5`."""

from __future__ import annotations

from typing import Any

from cluster.errors import Mistake
from jobs.errors import SpecError
from jobs.spec.checking.lines import Document, Mark, Path, dotted, parse_value

_SET = "--set"


def override_value(text: str) -> tuple[str, Any]:
    """Return the dotted name and the value of one `--set KEY=VALUE`. Raises SpecError."""
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        what = f"{text!r} must be KEY=VALUE, such as train.learning_rate=1e-5"
        raise SpecError.of([Mistake(what, place=_SET)])
    return ".".join(parts), parse_value(raw, f"{_SET}: {text}")


def override(document: Document, text: str) -> None:
    """Set one field of a document, or add the mistake to its problems."""
    try:
        name, value = override_value(text)
    except SpecError as error:
        document.problems += [(Mark(_SET), mistake) for mistake in error.mistakes]
        return
    path: Path = tuple(name.split("."))
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
