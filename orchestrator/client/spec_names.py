"""Names for the specs of a submission: the server knows only their numbers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.errors import InputError, Mistake, SpecError
from jobs.spec.checking.lines import Mark
from jobs.spec.checking.overrides import override_value
from jobs.spec.load import AnySpec, load_marked
from jobs.spec.vary import JobSpec


@dataclass(frozen=True)
class Named:
    """A spec and its name.

    Attributes:
        name: path of its file, or else its place in the submission.
        marks: places where its fields are written (`job.yaml:12`), by dotted name.
        is_checked: whether the spec is known to be valid. A spec from a script may be a copy with any values, because
            `model_copy(update=...)` accepts anything, even a dictionary in place of a section.
    """

    spec: AnySpec
    name: str
    marks: Mapping[str, Mark] = field(default_factory=dict)
    is_checked: bool = False


def load_named(given: Sequence[AnySpec | str | os.PathLike[str]], overrides: Sequence[str] = ()) -> list[Named]:
    """Load specs from files, and name all specs. `overrides` apply to files only.

    Raises SpecError with the mistakes of all specs.
    """
    found, wrong = list[Named](), dict[Mistake, None]()
    for number, one in enumerate(given, 1):
        if isinstance(one, JobSpec):
            found.append(Named(one, f"spec {number} ({one.name})"))
            continue
        path = os.fspath(one)
        try:
            loaded = load_marked(path, overrides)
        except SpecError as error:
            wrong |= dict.fromkeys(error.mistakes)  # a wrong override is reported once
        else:
            changes = dict(override_value(one) for one in overrides)
            spec = loaded.spec.model_copy(update={"queue": loaded.spec.queue.labelled(changes)})
            found.append(Named(spec, path, loaded.marks, is_checked=True))
    if wrong:
        raise SpecError.of(wrong)
    return found


def with_names(error: InputError, specs: Sequence[Named]) -> InputError:
    """Replace the numbers of specs in a server's error by the places of fields or the names of specs."""
    return type(error).of(_placed(mistake, specs) for mistake in error.mistakes)


@contextlib.contextmanager
def place_errors(spec: Named) -> Iterator[None]:
    """Add the place of the field, or the name of the spec, to an InputError about this spec."""
    try:
        yield
    except InputError as error:
        raise type(error).of(
            replace(one, place=one.place or _mark(spec, one.field) or spec.name) for one in error.mistakes
        ) from error


def _placed(mistake: Mistake, specs: Sequence[Named]) -> Mistake:
    if mistake.spec is not None and 1 <= mistake.spec <= len(specs):
        spec = specs[mistake.spec - 1]
        return replace(mistake, spec=None, place=_mark(spec, mistake.field) or spec.name)
    return replace(mistake, place=_mark(specs[0], mistake.field)) if len(specs) == 1 else mistake


def _mark(spec: Named, name: str) -> str:
    """Return where the field of that name is written; empty: unknown."""
    name = name.replace("[", ".").replace("]", "")  # as in `data.train[1]`
    while name and name not in spec.marks:  # a field that is left out belongs to a section that is written
        name = name.rpartition(".")[0]
    return str(spec.marks[name]) if name else ""
