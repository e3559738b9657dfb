"""The decisions of `auto`: it searches the learning rate first, and the other fields at the best rate. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.errors import SpecError
from jobs.search.rules.prior import RATE, inside
from jobs.search.rules.rates import next_rate
from jobs.search.rules.varying import field_meant
from jobs.spec.space import Range
from jobs.spec.sweep import SweepSpec

_PROBED = 8  # learning rates at which the loss after one step is measured
# The probe takes one step, and at each rate forward passes over the rows of two steps, each a third of a step.
PROBE_STEPS: Final = 1 + _PROBED * 2 / 3
# Share of the loss. Even at the best rate, a step on a few rows can raise the loss on other rows by some percent.
_EXCESSIVE: Final = 0.2
BRACKETED: Final = 8  # compared trials whose rates bracket the best one; after them, a Gaussian process proposes
LATER: Final = (0.5,)  # the rung, as a share of a run, if nothing has been learned at the first one
_LEAST_GAIN: Final = 0.05  # share of the base model's score. At a useful rung, MiniLM has gained 15 %
_NEAR: Final = 1.15  # factor between two rates; a whole run with one of them stands for the other
_FURTHER: Final = 1.5  # factor from the target to the rate of a further whole run


def rate_name(sweep: SweepSpec) -> str | None:
    """The name of the learning rate in the space; None: it does not vary."""
    for name in sweep.dimensions:
        with contextlib.suppress(SpecError):  # a name of no field, which `check_space` reports
            if field_meant(name) == RATE:
                return name
    return None


def drawn_in(sweep: SweepSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, each moved to the nearest value of the space, which may have been narrowed."""
    return {name: inside(value, sweep.dimensions[name]) for name, value in values.items()}


def prior_of(sweep: SweepSpec) -> dict[str, Any]:
    """The prior, moved into the space."""
    return drawn_in(sweep, sweep.prior)


def brackets_rate(sweep: SweepSpec) -> bool:
    """Return whether the rates of the first trials are chosen by `jobs.search.rules.rates`."""
    name = rate_name(sweep)
    rates = sweep.dimensions[name] if name is not None else ()
    return sweep.algorithm == "auto" and isinstance(rates, Range) and rates.min > 0


def aims(sweep: SweepSpec) -> bool:
    """Return whether compared trials pause at one rung, and the rates of whole runs follow from their scores."""
    return brackets_rate(sweep) and sweep.scheduler == "halving" and len(sweep.rung_shares) == 1


def is_too_early(sweep: SweepSpec, base: float | None, scores: Sequence[float]) -> bool:
    """Return whether nothing has been learned at the rung: no score is clearly better than the base model's.

    The order of such scores is noise. Two scores are enough to tell, since their rates differ by a factor of 1.7 at
    least. A rung that the spec gives is never too early.

    Args:
        base: score of the model before training; None: not known.
        scores: of the compared trials, at the rung.
    """
    if not aims(sweep) or sweep.rungs is not None or base is None or len(scores) < 2:
        return False
    gains = (base - score if sweep.lower_is_better else score - base for score in scores)
    return max(gains) < _LEAST_GAIN * abs(base)


def compared_point(sweep: SweepSpec, scores: Mapping[float, float | None]) -> dict[str, Any]:
    """Return the values of the next compared trial: the prior, with a rate that follows from earlier scores.

    Args:
        scores: see `next_rate`. Rates outside the range, which may have been narrowed, are left out. Without any, the
            trial has the prior's rate.
    """
    name, prior = rate_name(sweep), prior_of(sweep)
    assert name is not None
    rates = sweep.dimensions[name]
    assert isinstance(rates, Range)
    inside_range = {rate: score for rate, score in scores.items() if rates.min <= rate <= rates.max}
    return {**prior, name: next_rate(inside_range, rates.min, rates.max)} if inside_range else prior


def rate_for_a_whole_run(rate: float, share: float) -> float:
    """Estimate the best learning rate of a whole run from the best one of a run with this share of its steps.

    In pretraining with AdamW, the best rate is proportional to steps to the power -0.32 (arXiv 2409.19913).
    """
    return float(rate * share**0.32)


def whole_run_rate(sweep: SweepSpec, best: float) -> float:
    """Return the rate of a whole run, inside the range. `best`: the best rate at the rung."""
    name = rate_name(sweep)
    assert name is not None
    return float(inside(rate_for_a_whole_run(best, sweep.rung_shares[0]), sweep.dimensions[name]))


def is_near(rate: float, other: float) -> bool:
    """Return whether two rates are so near that one whole run is enough for both."""
    return abs(math.log(rate / other)) < math.log(_NEAR)


def last_points(sweep: SweepSpec, best: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the values of the first whole run of a sweep with several rungs, from those of its best trial."""
    if not brackets_rate(sweep) or sweep.scheduler != "halving":
        return []
    name = rate_name(sweep)
    assert name is not None
    return [drawn_in(sweep, {**best, name: whole_run_rate(sweep, best[name])})]


def further_rate(sweep: SweepSpec, target: float, tried: Sequence[float]) -> float:
    """Return the rate of one more whole run: near `target`, and not near a rate in `tried`."""
    name = rate_name(sweep)
    assert name is not None
    for power in (-1, 1, -2, 2):
        rate = float(inside(target * _FURTHER**power, sweep.dimensions[name]))
        if not any(is_near(rate, other) for other in tried):
            return rate
    return target


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


def probe_steps(sweep: SweepSpec) -> float:
    """Cost of the measurement at `probed_rates`, in optimizer steps; 0 if there is none."""
    return PROBE_STEPS if probed_rates(sweep) else 0.0


def greatest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The lowest rate from which on one step clearly raises the loss, at every higher one too; None if there is none.

    Args:
        losses: before the step, and after it at each rate.
    """
    before, *after = losses
    worse = [not loss <= before + _EXCESSIVE * abs(before) for loss in after]  # NaN counts as worse
    return next((rate for place, rate in enumerate(rates) if all(worse[place:])), None)


def bounded(sweep: SweepSpec, greatest: float) -> SweepSpec:
    """The sweep with this upper end of the range of learning rates."""
    name = rate_name(sweep)
    assert name is not None
    rates = sweep.dimensions[name]
    if not isinstance(rates, Range) or not rates.min < greatest < rates.max:
        return sweep
    return sweep.model_copy(update={"space": {**sweep.dimensions, name: rates.model_copy(update={"max": greatest})}})
