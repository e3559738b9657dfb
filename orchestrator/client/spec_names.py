"""Names for the specs of a submission: the server knows only their numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.errors import Mistake
from jobs.errors import InputError, SpecError
from jobs.spec.checking.lines import Mark
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.labels import labelled
from jobs.spec.load import AnySpec, load_marked, override_value
from jobs.spec.sweep import SweepSpec


@dataclass(frozen=True)
class Named:
    """A spec and its name.

    Attributes:
        name: its file; or else its place in the submission.
        marks: where its fields are written (`job.yaml:12`), by their dotted names.
        is_checked: whether the spec is known to be valid. One from a script may be a copy with any values:
            `model_copy(update=...)` takes anything, a dictionary for a section too.
    """

    spec: AnySpec
    name: str
    marks: Mapping[str, Mark] = field(default_factory=dict)
    is_checked: bool = False


def named(given: Sequence[AnySpec | str | os.PathLike[str]], overrides: Sequence[str] = ()) -> list[Named]:
    """Specs, and what files have; `overrides` are for those in files. Raises SpecError: the mistakes of all of them."""
    found, wrong = list[Named](), dict[Mistake, None]()
    for number, one in enumerate(given, 1):
        if isinstance(one, Spec | CommandSpec | SweepSpec):
            found.append(Named(one, f"spec {number} ({one.name})"))
            continue
        path = os.fspath(one)
        try:
            loaded = load_marked(path, overrides)
        except SpecError as error:
            wrong |= dict.fromkeys(error.mistakes)  # of a wrong option once
        else:
            changes = dict(override_value(one) for one in overrides)
            found.append(Named(labelled(loaded.spec, changes), path, loaded.marks, is_checked=True))
    if wrong:
        raise SpecError.of(wrong)
    return found


def with_names(error: InputError, specs: Sequence[Named]) -> InputError:
    """What the server says of a submission, with names and lines where it has numbers and fields."""
    return type(error).of(_placed(mistake, specs) for mistake in error.mistakes)


def of_one(error: InputError, spec: Named) -> InputError:
    """What is wrong with this one of several."""
    return type(error).of(
        replace(one, place=one.place or _mark(spec, one.field) or spec.name) for one in error.mistakes
    )


def _placed(mistake: Mistake, specs: Sequence[Named]) -> Mistake:
    if mistake.spec is not None and 1 <= mistake.spec <= len(specs):
        spec = specs[mistake.spec - 1]
        return replace(mistake, spec=None, place=_mark(spec, mistake.field) or spec.name)
    return replace(mistake, place=_mark(specs[0], mistake.field)) if len(specs) == 1 else mistake


def _mark(spec: Named, name: str) -> str:
    """Where the field of that name is written; empty: nobody knows."""
    name = name.replace("[", ".").replace("]", "")  # `data.train[1]`
    while name and name not in spec.marks:  # a field that is left out belongs to a section that is there
        name = name.rpartition(".")[0]
    return str(spec.marks[name]) if name else ""
