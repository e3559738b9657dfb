"""The spec of kind `sweep`: a base job, the fields that vary, the metric, and the budget. Light to import.

A spec of kind `compare` has most of the same fields: see `jobs.spec.compare`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, field_serializer, field_validator, model_validator

from cluster.text import did_you_mean
from jobs.frozen import Frozen
from jobs.spec.bounds import Count, name_field
from jobs.spec.evaluation import full_name, is_loss
from jobs.spec.finetune import SCHEMA_VERSION, Spec
from jobs.spec.queue import Queue
from jobs.spec.space import Range, Space
from jobs.spec.vary import JobSpec

MOST_FIELDS: Final = 16
MOST_TRIALS: Final = 10_000
GRID_POINTS: Final = 5  # values that a grid takes from a range without `points`
FIRST_RUNGS: Final = (0.25,)  # if the spec gives none
_AROUND: Final = 10.0  # the default range goes from a tenth of a learning rate to ten times that rate
_MOST_WARMUP: Final = 0.2  # end of the default range of warmup_ratio

Algorithm = Literal["auto", "grid", "random", "tpe", "gp"]
Scheduler = Literal["none", "asha", "halving"]
Then = Literal["export", "final", "nothing"]


class Budget(Frozen):
    """What the trials may spend. Once one of the limits is reached, no new trial starts."""

    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description="Trials that are started.")
    runs: float | None = Field(None, gt=0.0, le=1e6, description="Tokens, in units of one whole run of the base job.")
    tokens: Count | None = Field(None, description="Tokens that all trials train on.")
    gpu_hours: float | None = Field(None, gt=0.0, le=1e9, description="GPU hours; without GPUs, hours of CPUs.")
    minutes: float | None = Field(None, gt=0.0, le=1e7, description="Minutes since the search started.")

    @model_validator(mode="after")
    def _some_bound(self) -> Budget:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"needs one of {', '.join(type(self).model_fields)}")
        return self


def default_space(rate: float) -> dict[str, Range | tuple[Any, ...]]:
    """Return the space of a sweep that gives none: learning rates around `rate`, and warmup."""
    return {
        "learning_rate": Range(min=rate / _AROUND, max=min(rate * _AROUND, 1.0), log=True),
        "warmup_ratio": Range(min=0.0, max=_MOST_WARMUP),
    }


def varies_seed(space: Mapping[str, Any]) -> bool:
    """Whether the trials have different seeds. `space`: dotted names of fields and what to try."""
    return any(name.rpartition(".")[2] == "seed" for name in space)


def _is_auto(data: dict[str, Any]) -> bool:
    """Whether the algorithm is auto; `data` holds only fields that have passed validation."""
    return bool(data.get("algorithm", "auto") == "auto")


def _default_budget(data: dict[str, Any]) -> Budget:
    """Return the budget of a spec that gives none; `data` as for `_is_auto`."""
    if _is_auto(data):
        return Budget(runs=3.2)
    if data.get("algorithm") != "grid" or not data.keys() >= {"base", "space"}:
        return Budget(trials=16)
    space = dict(data["space"]) or default_space(data["base"].train.learning_rate)
    return Budget(trials=min(points_of(space), MOST_TRIALS))


def points_of(space: Mapping[str, Range | tuple[Any, ...]]) -> int:
    """Return the number of trials in a grid over the whole space."""
    each = (len(values) if isinstance(values, tuple) else values.points or GRID_POINTS for values in space.values())
    return math.prod(each)


def _or_a_path(schema: dict[str, Any]) -> None:
    """Allow a path for `base` in editors: `load` replaces it by the spec in that file."""
    schema["anyOf"] = [{"type": "string"}, {"$ref": schema.pop("$ref")}]


class Search(Frozen):
    """What is searched, from which job, and how: the fields that the kinds `sweep` and `compare` share."""

    version: Literal[1] = Field(SCHEMA_VERSION, description="Version of this schema.")
    kind: Literal["sweep", "compare"] = Field(description="sweep or compare.")
    name: str = name_field("search", "the name of its directory")
    base: Spec = Field(
        json_schema_extra=_or_a_path,
        description="The job that every trial changes: a path (relative to this file), or a spec.",
    )
    space: Space = Field(
        default_factory=dict,
        max_length=MOST_FIELDS,
        description="Fields of the base that vary: a list of values, or {min, max, log}. Default: learning rate and "
        "warmup.",
    )
    metric: str = Field("loss", min_length=1, description="Held-out metric that ranks trials, e.g. loss or accuracy.")
    mode: Literal["min", "max"] | None = Field(
        None, description="Whether min or max of the metric is best; default: min for loss and perplexity, else max."
    )
    algorithm: Algorithm = Field(
        "auto", description="How values are proposed: auto (the rate first), grid, random, tpe or gp (of Optuna)."
    )
    budget: Budget = Field(
        default_factory=_default_budget,
        description="What may be spent; default: 3.2 runs for auto, all points of a grid, else 16 trials.",
    )
    scheduler: Scheduler = Field(
        default_factory=lambda data: "halving" if _is_auto(data) else "none",
        description="Which trials continue after a rung: none (all do), asha or halving; default: halving for auto, "
        "else none.",
    )
    rungs: tuple[float, ...] | None = Field(
        None,
        max_length=20,
        description="Shares of a run after which trials are compared (asha, halving); left out: 0.25, and auto goes on "
        "to 0.5 if nothing has been learned by then.",
    )
    checkpoints_gb: float | None = Field(
        None,
        gt=0.0,
        description="Gigabytes that all checkpoints together may take; default: no limit. Checkpoints of failed and "
        "stopped trials are removed first, then those of the worst trials, never those of the best.",
    )
    cooldown: float = Field(
        default_factory=lambda data: 0.1 if _is_auto(data) else 0.0,
        ge=0.0,
        le=0.5,
        description="Share of a run in which the rate falls to zero before the score at a rung; the state is then put "
        "back. Default: 0.1 for auto, else 0.",
    )
    seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="Seeds with which the two best trials are trained; the best mean wins. A budget in minutes or "
        "gpu_hours has room for the repeats; one in trials, runs or tokens does not count them.",
    )
    num_gangs: int | None = Field(
        None, ge=1, le=1000, description="Most gangs at once; default: as many as fit, up to 8."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the proposals; every trial uses the base's seed.")
    queue: Queue = Field(
        default_factory=lambda data: data["base"].queue if "base" in data else Queue(),
        description="What the search asks of the queue; default: the base's.",
    )

    @field_serializer("base", mode="wrap")
    def _without_default_rate(self, base: Spec, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Do not dump a learning rate that was left out: a search then begins at another rate than the default."""
        values: dict[str, Any] = dumped(base)
        if isinstance(base, Spec) and "learning_rate" not in base.train.model_fields_set:
            values.get("train", {}).pop("learning_rate", None)
        return values

    @field_validator("rungs")
    @classmethod
    def _rungs_go_up(cls, rungs: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if any(not 0 < rung < 1 for rung in rungs or ()) or list(rungs or ()) != sorted(set(rungs or ())):
            raise ValueError("must be shares between 0 and 1, each greater than the one before")
        return rungs

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if not self.base.data.has_eval:
            raise ValueError(
                "the base has no held-out samples to judge trials by: give base.data.eval or base.data.eval_fraction"
            )
        if self.scheduler != "none" and self.rungs == ():
            raise ValueError(
                f"scheduler is {self.scheduler}, but rungs is empty: give some, as [0.25], or scheduler: none"
            )
        if not self.base.eval.may_report(self.metric):
            names = ", ".join(sorted({"loss", *self.base.eval.metrics}))
            hint = did_you_mean(self.metric.removeprefix("eval_"), ("loss", *self.base.eval.metrics))
            raise ValueError(f"metric is {self.metric}, but base.eval.metrics has {names}{hint}")
        if self.seeds > 1 and varies_seed(self.space):
            raise ValueError("seeds trains the best trials with other seeds, and space has seed too: drop one of them")
        return self

    def with_absolute_paths(self, path: str) -> Self:
        return self.model_copy(update={"base": self.base.with_absolute_paths(path)})

    @property
    def sweeps(self) -> tuple[SweepSpec, ...]:
        """The sweeps to run: only this one, or one for each method of a comparison."""
        raise NotImplementedError

    @property
    def working_dir(self) -> str | None:
        return self.base.working_dir

    @property
    def rung_shares(self) -> tuple[float, ...]:
        """Shares of a run after which trials are compared."""
        return FIRST_RUNGS if self.rungs is None else self.rungs

    @property
    def dimensions(self) -> dict[str, Range | tuple[Any, ...]]:
        """The space; if it is empty, the default one around the base's learning rate."""
        return dict(self.space) or default_space(self.base.train.learning_rate)

    @property
    def grid_size(self) -> int:
        """Number of trials in a grid over the whole space."""
        return points_of(self.dimensions)

    @property
    def judged(self) -> str:
        """Full name of the metric, eval_*."""
        return full_name(self.metric)

    @property
    def lower_is_better(self) -> bool:
        return self.mode == "min" if self.mode else is_loss(self.metric)


class SweepSpec(Search, JobSpec):
    """A search for the best values of some fields of a job."""

    kind: Literal["sweep"] = Field(description="sweep.")
    name: str = name_field("sweep", "the sweep's name")
    prior: dict[str, JsonValue] = Field(
        default_factory=dict,
        max_length=MOST_FIELDS,
        description="First values that auto tries; default: from the base, earlier sweeps of the model, or its size.",
    )
    then: Then = Field(
        "export",
        description="At the end: export the best trial's model; final: train the best values once more on all samples, "
        "including those of data.eval_fraction; or nothing.",
    )

    @property
    def sweeps(self) -> tuple[SweepSpec, ...]:
        return (self,)

    @model_validator(mode="after")
    def _no_sample_is_trained_on_twice(self) -> Self:
        if self.then == "final" and self.base.data.eval is not None:
            raise ValueError(
                "then is final, but the base has separate held-out samples (data.eval): a final run would train on "
                "the same samples again. Use then: export"
            )
        return self
