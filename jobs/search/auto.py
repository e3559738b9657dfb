"""The decisions of `auto`: it searches the learning rate first, and the other fields at the best rate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.search.prior import RATE, inside
from jobs.search.spec import Range, SweepSpec
from jobs.search.varying import field_meant

_PROBED = 8  # learning rates at which the loss after one step is measured
_CLEARLY = 0.01  # share of the loss: by chance, even a good step may raise the loss of other rows a little
STEP: Final = 3.0  # the second and third trial have the prior's learning rate times this, and divided by it


def rate_name(sweep: SweepSpec) -> str | None:
    """The name of the learning rate in the space; None: it does not vary."""
    return next((name for name in sweep.dimensions if field_meant(name) == RATE), None)


def drawn_in(sweep: SweepSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each moved to the nearest one of the space, which may have been narrowed meanwhile."""
    return {name: inside(value, sweep.dimensions[name]) for name, value in values.items()}


def prior_of(sweep: SweepSpec) -> dict[str, Any]:
    """The prior, moved into the space."""
    return drawn_in(sweep, sweep.prior)


def first_points(sweep: SweepSpec) -> list[dict[str, Any]]:
    """The first trials' values: the prior, then a higher and a lower learning rate."""
    name, prior = rate_name(sweep), prior_of(sweep)
    rates = sweep.dimensions[name] if name is not None else ()
    if name is None or not isinstance(rates, Range):
        return [prior]
    middle = prior[name]
    around = (middle, min(middle * STEP, rates.max), max(middle / STEP, rates.min))
    return [{**prior, name: rate} for rate in dict.fromkeys(around)]


def rate_for_a_whole_run(rate: float, share: float) -> float:
    """Estimate the best learning rate of a whole run from the best one of a run with this share of its steps.

    In pretraining with AdamW, the best rate is proportional to steps to the power -0.32 (arXiv 2409.19913).
    """
    return float(rate * share**0.32)


def last_points(sweep: SweepSpec, best: dict[str, Any]) -> list[dict[str, Any]]:
    """Values of the first whole run: those of the best trial, with the rate that its rate at the rung suggests."""
    name = rate_name(sweep)
    assert name is not None
    if not isinstance(sweep.dimensions[name], Range) or sweep.scheduler != "halving":
        return []
    rate = rate_for_a_whole_run(best[name], sweep.rungs[0])
    return [drawn_in(sweep, {**best, name: rate})]


def fixed_values(sweep: SweepSpec, straight: bool, best: dict[str, Any]) -> dict[str, Any]:
    """Values that the sampler may not change in its next proposal.

    Args:
        straight: the proposal is for a whole run, at the learning rate of `best`.
    """
    name = rate_name(sweep)
    if name is None:
        return {}
    if straight:
        return {name: inside(best[name], sweep.dimensions[name])}
    return {other: value for other, value in prior_of(sweep).items() if other != name}


def probed_rates(sweep: SweepSpec) -> tuple[float, ...]:
    """Learning rates at which the loss after one step is measured; empty if the space leaves none above the prior."""
    name = rate_name(sweep)
    rates = sweep.dimensions[name] if name is not None else ()
    if sweep.algorithm != "auto" or name is None or not isinstance(rates, Range) or rates.min <= 0:
        return ()
    first = prior_of(sweep)[name]
    if first >= rates.max:
        return ()
    return tuple(rate for rate in Range(min=first, max=rates.max, log=True).values(_PROBED) if rate > first)


def greatest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The lowest rate from which on one step clearly raises the loss, at every higher one too; None if there is none.

    Args:
        losses: before the step, and after it at each rate.
    """
    before, *after = losses
    worse = [not loss <= before + _CLEARLY * abs(before) for loss in after]  # NaN counts as worse
    return next((rate for place, rate in enumerate(rates) if all(worse[place:])), None)


def bounded(sweep: SweepSpec, greatest: float) -> SweepSpec:
    """The sweep with this upper end of the range of learning rates."""
    name = rate_name(sweep)
    assert name is not None
    rates = sweep.dimensions[name]
    if not isinstance(rates, Range) or not rates.min < greatest < rates.max:
        return sweep
    return sweep.model_copy(update={"space": {**sweep.dimensions, name: rates.model_copy(update={"max": greatest})}})
