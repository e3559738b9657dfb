"""Names for the specs of a submission: the server knows only their numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from jobs.errors import InputError, SpecError
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.labels import labelled
from jobs.spec.load import AnySpec, load_marked, override_value
from jobs.spec.sweep import SweepSpec

_NUMBERED: Final = re.compile(r"spec ([0-9]+): (.*)")  # as `service.admission.problems` writes it
_OF_A_FIELD: Final = re.compile(r"([a-z_][\w.]*): ")


@dataclass(frozen=True)
class Named:
    """A spec and its name.

    Attributes:
        name: path of its file, or else its place in the submission.
        marks: locations of its fields (`job.yaml:12`), by dotted name.
    """

    spec: AnySpec
    name: str
    marks: Mapping[str, str] = field(default_factory=dict)


def named(given: Sequence[AnySpec | str | os.PathLike[str]], overrides: Sequence[str] = ()) -> list[Named]:
    """Load specs from files, and name all of them. `overrides` apply to files only.

    Raises SpecError with the mistakes of all specs.
    """
    found, wrong = list[Named](), dict[str, None]()
    for number, one in enumerate(given, 1):
        if isinstance(one, Spec | CommandSpec | SweepSpec):
            found.append(Named(one, f"spec {number} ({one.name})"))
            continue
        path = os.fspath(one)
        try:
            loaded = load_marked(path, overrides)
        except SpecError as error:
            wrong |= dict.fromkeys(str(error).splitlines())  # a wrong override is reported once
        else:
            changes = dict(override_value(one) for one in overrides)
            found.append(Named(labelled(loaded.spec, changes), path, loaded.marks))
    if wrong:
        raise SpecError("\n".join(wrong))
    return found


def with_names(error: InputError, specs: Sequence[Named]) -> InputError:
    """Replace numbers of specs in a server's error by names, and fields by lines."""
    return type(error)("\n".join(_line(line, specs) for line in str(error).splitlines()))


def of_one(error: InputError, spec: Named) -> InputError:
    """Add the name of the spec to an error about one of several."""

    def said(line: str) -> str:
        return line if line.startswith(" ") else f"{_mark(spec, line) or spec.name}: {line}"

    return type(error)("\n".join(map(said, str(error).splitlines())))


def _line(line: str, specs: Sequence[Named]) -> str:
    match = _NUMBERED.fullmatch(line)
    if match is not None and 1 <= int(match[1]) <= len(specs):
        one, said = specs[int(match[1]) - 1], match[2]
        return f"{_mark(one, said) or one.name}: {said}"
    mark = _mark(specs[0], line) if len(specs) == 1 else None
    return f"{mark}: {line}" if mark else line


def _mark(spec: Named, said: str) -> str | None:
    """Return where the field that a message is about is written."""
    match = _OF_A_FIELD.match(said)
    name = match[1] if match is not None else ""
    while name and name not in spec.marks:  # a field that is left out belongs to a section that is written
        name = name.rpartition(".")[0]
    return spec.marks.get(name)
