"""The figures of a comparison: the scores and the cost of each method. Values and pure functions."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field, JsonValue

from cluster.text import compact
from jobs.frozen import Shown
from jobs.run.metric_names import general_increase
from jobs.search.report.edge import RateAtEdge
from jobs.storage.journal import Record

COMPARISON_VERSION: Final = 1
# Student's t, 97.5 %, by degrees of freedom from 1 to 9.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_USUAL_SEEDS: Final = 3  # of a method; with fewer, the interval says little
_SLOW_START: Final = 5  # the first fifth of the steps is slower, and does not count for tokens/s


class Mean(Shown):
    """A mean over seeds."""

    mean: float
    interval: float | None = Field(None, description="Half of the 95 % confidence interval; None for one seed.")
    values: tuple[float, ...] = Field(description="One for each seed.")

    def overlaps(self, other: Mean) -> bool:
        """Whether the confidence intervals of two means overlap."""
        return abs(self.mean - other.mean) <= (self.interval or 0.0) + (other.interval or 0.0)


class MethodFigures(Shown):
    """The results of one method with its best values, and the cost of its search."""

    name: str
    method: str = Field(description="full, lora or prompt.")
    settings: str = Field("", description="Rank of LoRA, or number of virtual tokens, as text.")
    sweep: str = Field(description="Root of its sweep.")
    status: str | None = Field(None, description="How the sweep has ended; None: it has not.")
    reason: str | None = Field(None, description="Why it did not succeed.")
    failed_seeds: int = Field(0, description="Repeats of the best trial with other seeds that failed.")
    failed_because: str | None = Field(None, description="The reason of the first of them.")
    trained: int | None = Field(None, description="Elements of the parameters that are updated.")
    parameters: int | None = Field(None, description="Elements of all parameters.")
    values: dict[str, JsonValue] = Field(default_factory=dict, description="The best values of the search.")
    at_edge: RateAtEdge | None = Field(None, description="Set if the best rate was the lowest or highest compared.")
    metrics: dict[str, Mean] = Field(default_factory=dict, description="eval_* at the end, over the seeds.")
    before: dict[str, float] = Field(default_factory=dict, description="eval_* before the first step.")
    general_change: Mean | None = Field(None, description="Increase of the loss on general text, as a share.")
    peak_memory_bytes: int | None = Field(None, description="Largest peak of any rank: its GPU, else its resident set.")
    run_s: float | None = Field(None, description="Seconds in the steps of one run.")
    tokens_per_s: float | None = Field(None, description="Speed of all workers together; median of the steps.")
    checkpoint_bytes: int | None = Field(None, description="Size of one checkpoint.")
    trials: int = Field(0, description="Trials of the search, with the repeats for other seeds.")
    tokens: int = Field(0, description="Tokens that the search has trained on.")
    search_s: float = Field(0.0, description="Seconds of the search.")
    device_hours: float = Field(0.0, description="GPU-hours of the search; CPU-hours without GPUs.")


class Comparison(Shown):
    """The content of comparison.json."""

    version: int = COMPARISON_VERSION
    metric: str = Field(description="The metric that ranks trials, eval_*.")
    lower_is_better: bool
    device: Literal["GPU", "CPU"] = Field(description="What device_hours counts.")
    methods: tuple[MethodFigures, ...]
    seeds: int | None = Field(
        None, description="Seeds that the spec asks for; None: an earlier release wrote the file."
    )
    price: float | None = Field(None, description="Of one GPU, or of one worker without GPU, for an hour (--price).")
    cpus_per_worker: int = Field(1, description="CPUs of a worker without GPU.")

    @property
    def ranked(self) -> list[MethodFigures]:
        """The methods that have a score, the best first."""
        scored = [one for one in self.methods if self.metric in one.metrics]
        return sorted(scored, key=lambda one: one.metrics[self.metric].mean * (1.0 if self.lower_is_better else -1.0))

    def cost_of(self, figures: MethodFigures) -> float | None:
        """Return the cost of a method's search; None: there is no price."""
        workers = self.cpus_per_worker if self.device == "CPU" else 1
        return None if self.price is None else self.price * figures.device_hours / workers


class RunFigures(NamedTuple):
    """The figures of one run with the best values. The runs of a method differ in their seed."""

    metrics: Mapping[str, float]
    before: Mapping[str, float]
    steps: Sequence[Record]
    trained: int | None
    parameters: int | None
    checkpoint_bytes: int | None


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean with its 95 % confidence interval, from Student's t distribution."""
    interval = None
    if len(values) > 1:
        interval = quantile_of_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(mean=statistics.fmean(values), interval=interval, values=tuple(values))


def quantile_of_t(degrees: int) -> float:
    """Return the 97.5 % quantile; above nine degrees by an expansion (Abramowitz and Stegun, 26.7.5)."""
    return _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.372 / degrees + 2.822 / degrees**2


def figures_of_runs(runs: Sequence[RunFigures]) -> dict[str, Any]:
    """Return the fields of `MethodFigures` that come from the runs with the best values.

    A metric that is not finite in one of the runs, as a user's function may return it, is left out.

    Args:
        runs: at least one; the first has the base's seed.
    """
    first = runs[0]
    common = [
        name
        for name in first.metrics
        if name.startswith("eval_") and all(math.isfinite(run.metrics.get(name, math.nan)) for run in runs)
    ]
    changes = [general_increase(run.before, run.metrics) for run in runs]
    risen = [one for one in changes if one is not None and math.isfinite(one)]
    later = [step for run in runs for step in run.steps[len(run.steps) // _SLOW_START :]]
    memory = [int(step["max_memory_bytes"]) for run in runs for step in run.steps if step.get("max_memory_bytes")]
    return {
        "trained": first.trained,
        "parameters": first.parameters,
        "metrics": {name: mean_of([run.metrics[name] for run in runs]) for name in common},
        "before": {name: value for name, value in first.before.items() if math.isfinite(value)},
        "general_change": mean_of(risen) if len(risen) == len(runs) else None,
        "peak_memory_bytes": max(memory, default=None),
        "run_s": statistics.fmean(sum(step["step_time_s"] for step in run.steps) for run in runs) if later else None,
        "tokens_per_s": statistics.median(step["tokens_per_s"] for step in later) if later else None,
        "checkpoint_bytes": first.checkpoint_bytes,
    }


def rate_of(figures: MethodFigures) -> float | None:
    """Return the best learning rate; None if the search did not vary it, or has no best trial yet."""
    rates = (value for name, value in figures.values.items() if name.rpartition(".")[2] == "learning_rate")
    return next((rate for rate in rates if isinstance(rate, float)), None)


def findings(comparison: Comparison) -> list[str]:
    """Return the conclusions from the figures, one a sentence."""
    ranked, metric = comparison.ranked, comparison.metric
    said = []
    if len(ranked) > 1:
        best, *others = ranked
        short, mean = metric.removeprefix("eval_"), best.metrics[metric].mean
        same = [one.name for one in others if one.metrics[metric].mean == mean]
        equal = f"{short} is the same with {' and '.join([best.name, *same])}"
        said.append(equal if same else f"{short} is best with {best.name}")
        near = [
            one.name for one in others if one.name not in same and best.metrics[metric].overlaps(one.metrics[metric])
        ]
        single = [one for one in ranked if len(one.metrics[metric].values) < 2]
        if single:
            noise = "a method with one seed has no interval, so the differences may be noise"
            few = comparison.seeds is None or comparison.seeds < _USUAL_SEEDS
            what_to_do = f"give seeds: {_USUAL_SEEDS}, or a larger budget" if few else "give a larger budget"
            if all(one.failed_seeds for one in single):
                what_to_do = "its other seeds have failed"
            said.append(f"{noise}: {what_to_do}")
        elif near:
            said.append(f"its interval overlaps with that of {', '.join(near)}: more seeds may tell them apart")
    full = next((rate for one in comparison.methods if one.method == "full" and (rate := rate_of(one))), None)
    rates = {one.name: rate for one in comparison.methods if one.method != "full" and (rate := rate_of(one))}
    if full is not None and rates:
        times = ", ".join(f"{compact(rate / full)} times with {name}" for name, rate in rates.items())
        said.append(f"best learning rates as multiples of that of full fine-tuning: {times}")
    said += [_format_edge(one, one.at_edge) for one in comparison.methods if one.at_edge is not None]
    for one in comparison.methods:
        if one.failed_seeds and metric in one.metrics:
            seeds = one.failed_seeds + len(one.metrics[metric].values)
            said.append(
                f"{one.failed_seeds} of {seeds} seeds failed with {one.name} and are not in its mean: "
                f"{one.failed_because or 'for an unknown reason'}"
            )
        if one.reason is not None:
            said.append(f"{one.name} {'did not finish' if metric in one.metrics else 'has no result'}: {one.reason}")
    return said


def _format_edge(one: MethodFigures, edge: RateAtEdge) -> str:
    """Say that rates beyond those that were compared were not tried, and how to try them."""
    found = f"{one.name} was best at the {edge.end} of {edge.compared} compared learning rates ({edge.rate:.1e})"
    wider = f"start again with a space that reaches {edge.beyond}"
    extend = f"extend its budget (fleetune sweep extend {shlex.quote(one.sweep)})"
    more = f"{extend}, or {wider}" if edge.is_within else wider
    return f"{found}, and {edge.beyond} ones were not tried: {more}"
