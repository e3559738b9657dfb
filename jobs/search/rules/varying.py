"""Decides which fields of a job may vary between trials, and makes the spec of a trial. Pure; light to import."""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from cluster.errors import Mistake, SpecError
from cluster.text import many
from jobs.planning import plan_batching, warmup_steps
from jobs.spec.checking.fields import homes_of, spec_fields, unknown_key
from jobs.spec.checking.mistakes import reworded
from jobs.spec.finetune import NotWhole, Spec
from jobs.spec.space import Range
from jobs.spec.sweep import SweepSpec
from jobs.spec.vary import SAME_SETTING, set_value

# Fields that a warm gang can change from trial to trial, beside the weights of the sources.
VARYING: Final = frozenset(
    {
        "seed",
        "train.learning_rate",
        "train.lr_scheduler_type",
        "train.warmup_ratio",
        "train.warmup_steps",
        "train.decay_ratio",
        "train.num_train_epochs",
        "train.max_steps",
        "train.weight_decay",
        "train.adam_beta1",
        "train.adam_beta2",
        "train.adam_epsilon",
        "train.max_grad_norm",
    }
)
# Fields from which an engine is built. A trial with other values needs a gang with another engine.
ENGINE: Final = frozenset(
    {
        "model.attn_implementation",
        "lora.rank",
        "lora.alpha",
        "lora.dropout",
        "train.global_batch_size",
        "train.global_batch_tokens",
        "train.per_device_train_batch_size",
        "train.gradient_accumulation_steps",
        "train.bf16",
        "train.fp16",
        "train.gradient_checkpointing",
        "train.group_by_length",
        "train.zero.stage",
    }
)
MOST_ENGINES: Final = 8  # combinations of these fields; each change from one to another starts a gang
_WEIGHT = re.compile(r"data\.train\.(\d+)\.weight")
_LENGTHS: Final = frozenset({"train.max_steps", "train.num_train_epochs"})
_GIVE_A_LIST: Final = ". A range draws any number between its ends: give a list of values"
_NOT_WHOLE: Final = frozenset({"int_type", "int_from_float"})  # pydantic's names of mistakes


def field_meant(name: str, section: str = "space") -> str:
    """Return the dotted name of a field that may vary, given this name or its last part.

    Args:
        section: section of the sweep that has the name, for the error.

    Raises:
        SpecError: there is no field of this name, or it may not vary.
    """
    full = [known for known in sorted(VARYING | ENGINE) if name in (known, known.rpartition(".")[2])]
    if full or is_weight(name):
        return full[0] if full else name
    if name in spec_fields(Spec) or homes_of(name, Spec):
        raise SpecError.at(
            f"{section}.{name}",
            "the model and the rows are prepared once for all trials, so this field cannot vary. "
            f"What can: {', '.join(sorted((VARYING | ENGINE) - _LENGTHS))}, data.train.N.weight",
        )
    outer, _, key = name.rpartition(".")
    raise SpecError.at(f"{section}.{name}", unknown_key(outer if outer in spec_fields(Spec) else "", key, Spec)[0])


def check_space(sweep: SweepSpec) -> None:
    """Try the ends of every range, a value between them, and every choice.

    Raises:
        SpecError: the first mistake of each field.
    """
    problems, meant = list[Mistake](), dict[str, str]()
    for name, values in sweep.dimensions.items():
        own, full = f"space.{name}", name
        try:
            full = field_meant(name)
            if (other := meant.get(full) or meant.get(SAME_SETTING.get(full, ""))) is not None:
                raise SpecError.at(own, f"{other} sets the same: drop one of them")
            meant[full] = name
            if full in _LENGTHS:
                what = "trials of different lengths cannot be compared: give it in the base"
                raise SpecError.at(own, what)
            _check_kind(sweep, name, full)
            if isinstance(values, tuple) and (twice := [one for one in values if values.count(one) > 1]):
                raise SpecError.at(own, f"has {twice[0]} more than once: drop the others")
            for value in values_to_check(values):
                train = trial_spec(sweep.base, {full: value}).train
                if train.max_steps is not None:
                    warmup_steps(train, train.max_steps)  # raises SpecError for one that is longer than the run
        except SpecError as error:
            problems += (
                replace(one, field=own) if one.field in ("", f"space.{full}") else one for one in error.mistakes
            )
    if problems := problems or _wrong_engines(sweep):
        raise SpecError.of(problems)


def _wrong_engines(sweep: SweepSpec) -> list[Mistake]:
    """Return the mistakes in the combinations of values from which engines are built."""
    choices = _engine_choices(sweep)
    if (count := math.prod(map(len, choices.values()))) > MOST_ENGINES:
        fields = ", ".join(choices)
        what = f"{fields} have {count} combinations, and each needs an engine: give at most {MOST_ENGINES}"
        return [Mistake(what, "space")]
    rows = set[int]()
    for engine in engines(sweep):
        try:
            rows.add(plan_batching(trial_spec(sweep.base, engine)).rows)
        except SpecError as error:
            said = ", ".join(f"{name} {value}" for name, value in engine.items())
            wrong = [str(replace(one, field=one.field.removeprefix("space."))) for one in error.mistakes]
            return [Mistake(f"{said}: {one}", "space") if said else Mistake(one, "base") for one in wrong]
    if len(rows) > 1 and sweep.base.train.max_steps is not None:
        what = (
            "with base.train.max_steps, trials with larger batches take more tokens and cannot be compared: "
            "give num_train_epochs instead of max_steps"
        )
        return [Mistake(what, "space")]
    return []


def engines(sweep: SweepSpec) -> list[dict[str, Any]]:
    """Return the combinations of the fields in the space that an engine is built from: `[{}]` if there are none."""
    choices = _engine_choices(sweep)
    return [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]


def _engine_choices(sweep: SweepSpec) -> dict[str, tuple[Any, ...]]:
    """Return the values of the fields of ENGINE in the space, without ranges, which `_check_kind` refuses."""
    return {
        name: values
        for name, values in sweep.dimensions.items()
        if isinstance(values, tuple) and field_meant(name) in ENGINE
    }


def values_to_check(values: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of a dimension that are checked first: each choice, or the ends and one value between."""
    return values if isinstance(values, tuple) else (values.min, values.max, values.between)


def _check_kind(sweep: SweepSpec, name: str, full: str) -> None:
    """Raise SpecError if a weight varies and the base has no max_steps, or if a field of ENGINE has a range."""
    if is_weight(full) and sweep.base.train.max_steps is None:
        raise SpecError.at(
            f"space.{name}",
            "the number of rows in an epoch depends on the weights, and trials of different lengths cannot be "
            "compared: give base.train.max_steps",
        )
    if full in ENGINE and not isinstance(sweep.dimensions[name], tuple):
        raise SpecError.at(f"space.{name}", "each value needs an engine: give a list of a few values")


def engine_key(spec: Spec) -> str:
    """Return the values of ENGINE as a text. Specs with the same text can share a gang."""
    return repr([operator.attrgetter(name)(spec) for name in sorted(ENGINE)])


def is_weight(name: str) -> bool:
    """Whether the field is the weight of a source."""
    return _WEIGHT.fullmatch(name) is not None


def short_name(name: str) -> str:
    """Return the last part of a dotted name, as `learning_rate`; for the weight of a source, `train.0.weight`."""
    return name.removeprefix("data.") if is_weight(name) else name.rpartition(".")[2]


def trial_spec(base: Spec, values: Mapping[str, Any]) -> Spec:
    """Return the base with these values, without early stopping: the sweep decides how long a trial is trained.

    Raises:
        SpecError: a value is not allowed.
    """
    raw = base.model_dump(mode="json")
    raw["eval"] |= {"early_stopping_patience": None, "early_stopping_threshold": 0.0}
    for given, value in values.items():
        name = field_meant(given)
        if (other := SAME_SETTING.get(name)) is not None:
            set_value(raw, other, None)
        if (weight := _WEIGHT.fullmatch(name)) and int(weight[1]) >= len(base.data.train):
            what = f"base.data.train has {many(len(base.data.train), 'source')}, counted from 0"
            raise SpecError.at(f"space.{given}", what)
        set_value(raw, name, value)
    try:
        return Spec.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or next(iter(values))
        said = reworded(Spec, place, first["type"], first.get("ctx", {}), first["input"])
        not_whole = first["type"] in _NOT_WHOLE or isinstance(first.get("ctx", {}).get("error"), NotWhole)
        raise SpecError.at(f"space.{next(iter(values))}", f"{said}{_GIVE_A_LIST if not_whole else ''}") from error
