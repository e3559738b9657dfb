"""Where `auto` looks: the learning rate first, the other fields afterwards, at the best rate. Pure; light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.search.prior import RATE, inside
from jobs.search.spec import Range, SweepSpec
from jobs.search.varying import field_meant

_PROBED = 8  # rates
_CLEARLY = 0.01  # of the loss: on other rows, a small step may also make it worse by chance
STEP: Final = 3.0  # from the prior's learning rate to the next ones that are tried


def rate_name(sweep: SweepSpec) -> str | None:
    """The name of the learning rate in the space; None: it does not vary."""
    return next((name for name in sweep.dimensions if field_meant(name) == RATE), None)


def drawn_in(sweep: SweepSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """The nearest values of the space, which may have been narrowed since they were found."""
    return {name: inside(value, sweep.dimensions[name]) for name, value in values.items()}


def prior_of(sweep: SweepSpec) -> dict[str, Any]:
    """The prior, drawn into the space."""
    return drawn_in(sweep, sweep.prior)


def first_points(sweep: SweepSpec) -> list[dict[str, Any]]:
    """Values that are tried before a model proposes any: the prior, and higher and lower rates."""
    name, prior = rate_name(sweep), prior_of(sweep)
    rates = sweep.dimensions[name] if name is not None else ()
    if name is None or not isinstance(rates, Range):
        return [prior]
    middle = prior[name]
    around = (middle, min(middle * STEP, rates.max), max(middle / STEP, rates.min))
    return [{**prior, name: rate} for rate in dict.fromkeys(around)]


def rate_for_a_whole_run(rate: float, share: float) -> float:
    """The best rate of a whole run, by the best rate of a run of this share of its steps.

    The more steps, the lower: in pretraining with AdamW it falls with steps to the power -0.32 (arXiv 2409.19913).
    """
    return float(rate * share**0.32)


def last_points(sweep: SweepSpec, best: dict[str, Any]) -> list[dict[str, Any]]:
    """Values of the first trials that go straight to the end: the rate is what the best one's at the rung leads to."""
    name = rate_name(sweep)
    assert name is not None
    if not isinstance(sweep.dimensions[name], Range) or sweep.scheduler != "halving":
        return []
    rate = rate_for_a_whole_run(best[name], sweep.rungs[0])
    return [drawn_in(sweep, {**best, name: rate})]


def fixed_values(sweep: SweepSpec, straight: bool, best: dict[str, Any]) -> dict[str, Any]:
    """Values that a proposal has to have.

    Args:
        straight: it is one of the last trials, at the rate of `best`.
    """
    name = rate_name(sweep)
    if name is None:
        return {}
    if straight:
        return {name: inside(best[name], sweep.dimensions[name])}
    return {other: value for other, value in prior_of(sweep).items() if other != name}


def probed_rates(sweep: SweepSpec) -> tuple[float, ...]:
    """Learning rates of the one step by which the greatest is bounded; none where there is nothing to bound."""
    name = rate_name(sweep)
    rates = sweep.dimensions[name] if name is not None else ()
    if sweep.algorithm != "auto" or name is None or not isinstance(rates, Range) or rates.min <= 0:
        return ()
    first = prior_of(sweep)[name]
    if first >= rates.max:
        return ()
    return tuple(rate for rate in Range(min=first, max=rates.max, log=True).values(_PROBED) if rate > first)


def greatest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The least of these rates from which on one step makes the loss clearly worse than it was; None: at none of them.

    Args:
        losses: before the step, and after it at each rate.
    """
    before, *after = losses
    worse = [not loss <= before + _CLEARLY * abs(before) for loss in after]  # also what is no number
    return next((rate for place, rate in enumerate(rates) if all(worse[place:])), None)


def bounded(sweep: SweepSpec, greatest: float) -> SweepSpec:
    """The sweep with no learning rate above this one."""
    name = rate_name(sweep)
    assert name is not None
    rates = sweep.dimensions[name]
    assert isinstance(rates, Range)
    if not rates.min < greatest < rates.max:
        return sweep
    return sweep.model_copy(update={"space": {**sweep.dimensions, name: rates.model_copy(update={"max": greatest})}})
