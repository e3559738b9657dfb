"""Which fields of a job may vary between trials, and the job of one trial. Pure; light to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from jobs.errors import SpecError
from jobs.fields import homes_of, spec_fields, unknown_key
from jobs.mistakes import reworded
from jobs.search.spec import SweepSpec
from jobs.spec import Spec

# What a warm gang sets anew for each trial. The engine is built from all others.
VARYING: Final = frozenset(
    {
        "seed",
        *(
            f"train.{name}"
            for name in (
                "learning_rate",
                "lr_scheduler_type",
                "warmup_ratio",
                "warmup_steps",
                "decay_ratio",
                "num_train_epochs",
                "max_steps",
                "weight_decay",
                "adam_beta1",
                "adam_beta2",
                "adam_epsilon",
                "max_grad_norm",
            )
        ),
    }
)
_LENGTHS: Final = frozenset({"train.max_steps", "train.num_train_epochs"})
_EITHER: Final = {"train.warmup_ratio": "train.warmup_steps", "train.num_train_epochs": "train.max_steps"}
_LIST: Final = ". A range draws any number between its ends: give a list of values"
_INSTEAD: Final = {**_EITHER, **{other: one for one, other in _EITHER.items()}}


def field_meant(name: str, section: str = "space") -> str:
    """The dotted name of a field that may vary; the last part alone is enough.

    Args:
        section: of the sweep, in which the name stands.

    Raises:
        SpecError: no field that may vary has this name.
    """
    full = [known for known in sorted(VARYING) if name in (known, known.rpartition(".")[2])]
    if full:
        return full[0]
    if name in spec_fields() or homes_of(name):
        raise SpecError(
            f"{section}.{name}: the gang's engine and its rows are made for this field, so it cannot vary from trial "
            f"to trial. What can: {', '.join(sorted(VARYING - _LENGTHS))}"
        )
    outer, _, key = name.rpartition(".")
    raise SpecError(f"{section}.{name}: {unknown_key(outer if outer in spec_fields() else '', key)[0]}")


def check_space(sweep: SweepSpec) -> None:
    """Try the ends of every range, a value between them, and every choice.

    Raises:
        SpecError: with the first mistake of each field.
    """
    problems, meant = list[str](), dict[str, str]()
    for name, values in sweep.dimensions.items():
        try:
            full = field_meant(name)
            if full in meant or _INSTEAD.get(full) in meant:
                other = meant.get(full) or meant[_INSTEAD[full]]
                raise SpecError(f"space.{name}: {other} says the same: drop one of them")
            meant[full] = name
            if full in _LENGTHS:
                raise SpecError(f"space.{name}: trials of unlike lengths cannot be compared: give it in the base")
            for value in values if isinstance(values, tuple) else (values.min, values.max, values.between):
                trial_spec(sweep.base, {full: value})
        except SpecError as error:
            problems.append(str(error))
    if problems:
        raise SpecError("\n".join(problems))


def trial_spec(base: Spec, values: Mapping[str, Any]) -> Spec:
    """The base with these values. Raises SpecError: a value is not allowed."""
    raw = base.model_dump(mode="json")
    for given, value in values.items():
        name = field_meant(given)
        if (other := _INSTEAD.get(name)) is not None:
            _set(raw, other, None)
        _set(raw, name, value)
    try:
        return Spec.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or next(iter(values))
        said = reworded("finetune", place, first["type"], first.get("ctx", {}), first["input"])
        raise SpecError(f"space.{next(iter(values))}: {said}{_LIST if 'whole' in said else ''}") from error


def _set(value: dict[str, Any], name: str, new: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        value = value[section]
    value[key] = new
