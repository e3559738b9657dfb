"""The spec of kind `compare`: one job, and methods of training it, each with its own search. Light to import."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from jobs.frozen import Frozen
from jobs.spec.bounds import LONGEST_NAME, NAME_PATTERN, name_field
from jobs.spec.finetune import Spec
from jobs.spec.method import Lora, Method, MethodName, Prompt
from jobs.spec.sweep import Search, SweepSpec, varies_seed
from jobs.spec.vary import JobSpec

_MOST_METHODS: Final = 16
_METHODS: Final = get_args(MethodName)


def _for_editors(schema: dict[str, Any]) -> None:
    """Allow a mapping without `method` whose name is a method, which `_from_name` completes."""
    schema["required"] = []
    named = {"required": ["name"], "properties": {"name": {"enum": list(_METHODS)}}}
    schema["anyOf"] = [{"required": ["method"]}, named]


class ComparedMethod(Frozen):
    """A method of training, under a name. All other fields of the job are the same for all methods."""

    model_config = ConfigDict(json_schema_extra=_for_editors)

    method: Method = Field(description="full, lora or prompt.")
    name: str = Field(
        default_factory=lambda data: data["method"].kind if "method" in data else "method",
        pattern=NAME_PATTERN,
        description="Name in the table, and of the sweep's directory; default: the method.",
    )
    lora: Lora | None = Field(None, description="LoRA; default: as in the base, if its method is lora.")
    prompt: Prompt | None = Field(None, description="Prompt tuning; default: as in the base, if its method is prompt.")


def _from_name(value: object) -> object:
    """Accept the name of a method in place of a mapping, and a mapping whose name is also its method."""
    if isinstance(value, str):
        return {"method": value}
    if isinstance(value, dict) and "method" not in value and value.get("name") in _METHODS:
        return {**value, "method": value["name"]}
    return value


_Compared = Annotated[ComparedMethod, BeforeValidator(_from_name, json_schema_input_type=MethodName | ComparedMethod)]


class CompareSpec(Search, JobSpec):
    """A comparison of methods on the same data and the same budget. Each is a sweep, which finds its own rate."""

    kind: Literal["compare"] = Field(description="compare.")
    name: str = name_field("compare", "the comparison's name")
    methods: tuple[_Compared, ...] = Field(
        min_length=2,
        max_length=_MOST_METHODS,
        description="What is compared: full, lora or prompt; or {name, method, lora, prompt}, to compare ranks.",
    )
    seeds: int = Field(
        default_factory=lambda data: 1 if varies_seed(data.get("space", {})) else 3,
        ge=1,
        le=100,
        description="Seeds with which the two best trials of each method are trained. The table has the interval over "
        "them. Default: 3, or 1 if space has a seed. A budget in minutes or gpu_hours includes the repeats; one in "
        "trials, runs or tokens does not.",
    )
    then: Literal["export", "nothing"] = Field(
        "export", description="At the end of each sweep: export the best trial's model, or nothing."
    )

    @model_validator(mode="after")
    def _methods_are_possible_and_have_different_names(self) -> Self:
        (name, count), *_ = Counter(one.name for one in self.methods).most_common(1)
        if count > 1:
            raise ValueError(
                f"methods has {count} with the name {name}: give each a name, as {{name: lora-r4, method: lora, "
                "lora: {rank: 4}}"
            )
        for one in self.methods:
            try:
                self.job_of(one)
            except ValidationError as error:
                raise ValueError(f"methods: {one.name}: {_first(error)}") from error
        return self

    @property
    def sweeps(self) -> tuple[SweepSpec, ...]:
        return tuple(map(self.sweep_of, self.methods))

    def job_of(self, method: ComparedMethod) -> Spec:
        """Return the base with this method. Raises ValidationError.

        The base's learning rate is kept only for the base's method: the best rates of the methods differ tenfold, so
        the search of any other method starts at a usual rate of that method.
        """
        values = self.base.model_dump(mode="json", exclude_unset=True)
        same = self.base.method.kind == method.method.kind
        if not same:
            values.get("train", {}).pop("learning_rate", None)
        for name in ("lora", "prompt"):
            given = getattr(method, name)
            if given is not None:
                values[name] = given.model_dump(mode="json")
            elif not same:
                values.pop(name, None)
        values["method"] = method.method.kind
        return Spec.model_validate_json(json.dumps(values), strict=True)

    def sweep_of(self, method: ComparedMethod) -> SweepSpec:
        """Return the search of this method."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in Search.model_fields}
        name = f"{self.name[: LONGEST_NAME - 1 - len(method.name)] or self.name[:1]}-{method.name}"[:LONGEST_NAME]
        own = {"kind": "sweep", "name": name, "base": self.job_of(method), "then": self.then}
        return SweepSpec(**fields | own)


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False)[0]
    return str(one["ctx"]["error"]) if one["type"] == "value_error" else str(one["msg"])
