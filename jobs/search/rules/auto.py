"""The decisions of `auto`, which searches the learning rate first and then the other fields at the best rate. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cluster.errors import SpecError
from jobs.search.rules.prior import RATE, nearest_in
from jobs.search.rules.rates import next_rate
from jobs.search.rules.varying import field_meant
from jobs.spec.space import Range
from jobs.spec.sweep import SweepSpec

_PROBED = 8  # number of learning rates at which the loss after one step is measured, before the first trial
# One step, and at each rate forward passes over the rows of two steps. A forward pass costs a third of a step.
PROBE_STEPS: Final = 1 + _PROBED * 2 / 3
# Increase of the loss after one step, as a share, from which a rate is too high. Even at the best rate, one step can
# raise the loss on other rows by a few percent.
_EXCESSIVE: Final = 0.2
BRACKETED: Final = 8  # the first compared trials bracket the best rate; then a Gaussian process proposes the values
LATER: Final = (0.5,)  # the rung, as a share of a run, if nothing has been learned at the first one
# Least gain that shows that something was learned, as a share of the base model's score. At a rung that was late
# enough, MiniLM had gained 15 %.
_LEAST_GAIN: Final = 0.05
_NEAR: Final = 1.15  # rates that differ by less than this factor need only one whole run
_FURTHER: Final = 1.5  # factor from the target to the rate of a further whole run


def rate_name(sweep: SweepSpec) -> str | None:
    """Return the name of the learning rate in the space; None: it does not vary."""
    for name in sweep.dimensions:
        with contextlib.suppress(SpecError):  # not the name of a field, which `check_space` reports
            if field_meant(name) == RATE:
                return name
    return None


def varied_rate_name(sweep: SweepSpec) -> str:
    """Return `rate_name` of a sweep whose learning rate is known to vary."""
    name = rate_name(sweep)
    assert name is not None
    return name


def rate_range(sweep: SweepSpec) -> Range | None:
    """Return the range of the learning rate in the space; None: it does not vary, or it has a list of values."""
    rates = sweep.dimensions.get(rate_name(sweep) or "")
    return rates if isinstance(rates, Range) else None


def in_space(sweep: SweepSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, each moved to the nearest value of the space, which may have been narrowed."""
    return {name: nearest_in(sweep.dimensions[name], value) for name, value in values.items()}


def prior_of(sweep: SweepSpec) -> dict[str, Any]:
    """Return the prior, moved into the space."""
    return in_space(sweep, sweep.prior)


def brackets_rate(sweep: SweepSpec) -> bool:
    """Whether the rates of the first trials are chosen by `jobs.search.rules.rates`."""
    rates = rate_range(sweep)
    return sweep.algorithm == "auto" and rates is not None and rates.min > 0


def extrapolates(sweep: SweepSpec) -> bool:
    """Whether the best rate of a whole run is computed from the scores of the compared trials at a single rung."""
    return brackets_rate(sweep) and sweep.scheduler == "halving" and len(sweep.rung_shares) == 1


def is_too_early(sweep: SweepSpec, base: float | None, scores: Sequence[float]) -> bool:
    """Return whether nothing has been learned at the rung: no score is clearly better than the base model's.

    The order of such scores is noise. Two scores are enough to decide this, because their rates differ by a factor of
    at least 1.7. A rung that the spec gives is never too early.

    Args:
        base: score of the model before training; None: not known.
        scores: of the compared trials, at the rung.
    """
    if not extrapolates(sweep) or sweep.rungs is not None or base is None or len(scores) < 2:
        return False
    gains = (base - score if sweep.lower_is_better else score - base for score in scores)
    return max(gains) <= _LEAST_GAIN * abs(base)


def compared_point(sweep: SweepSpec, scores: Mapping[float, float | None]) -> dict[str, Any]:
    """Return the values of the next compared trial: the prior, with a rate that follows from earlier scores.

    Args:
        scores: see `next_rate`. Rates outside the range, which may have been narrowed, are ignored. If no rate is left,
            the trial has the prior's rate.
    """
    prior, rates = prior_of(sweep), rate_range(sweep)
    assert rates is not None
    inside = {rate: score for rate, score in scores.items() if rates.min <= rate <= rates.max}
    return {**prior, varied_rate_name(sweep): next_rate(inside, rates.min, rates.max)} if inside else prior


def rate_for_a_whole_run(rate: float, share: float) -> float:
    """Estimate the best learning rate of a whole run from the best one of a run with this share of its steps.

    In pretraining with AdamW, the best rate is proportional to steps to the power -0.32 (arXiv 2409.19913).
    """
    return float(rate * share**0.32)


def whole_run_rate(sweep: SweepSpec, best: float) -> float:
    """Return the rate of a whole run, inside the range. `best`: the best rate at the rung."""
    return float(
        nearest_in(sweep.dimensions[varied_rate_name(sweep)], rate_for_a_whole_run(best, sweep.rung_shares[0]))
    )


def is_near(rate: float, other: float) -> bool:
    """Return whether two rates are so near that one whole run is enough for both."""
    return abs(math.log(rate / other)) < math.log(_NEAR)


def first_whole_run(sweep: SweepSpec, best: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values of the first whole run of a halving with several rungs, from the values of its best trial.

    None for any other sweep.
    """
    if not brackets_rate(sweep) or sweep.scheduler != "halving":
        return None
    name = varied_rate_name(sweep)
    return in_space(sweep, {**best, name: whole_run_rate(sweep, best[name])})


_POWERS: Final = (-1, 1, -2, 2)  # of _FURTHER
OTHER_RATES: Final = len(_POWERS)  # of whole runs, beside the target


def further_rate(sweep: SweepSpec, target: float, tried: Sequence[float]) -> float | None:
    """Return a rate near `target` for one more whole run, or None if each of them is near a rate in `tried`."""
    for power in _POWERS:
        rate = float(nearest_in(sweep.dimensions[varied_rate_name(sweep)], target * _FURTHER**power))
        if not any(is_near(rate, other) for other in tried):
            return rate
    return None


def fixed_values(sweep: SweepSpec, best: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values that the sampler may not change in its next proposal.

    Args:
        best: values of the best trial, for a whole run, which gets its learning rate; None for a compared trial.
    """
    name = rate_name(sweep)
    if name is None:
        return {}
    if best is not None:
        return in_space(sweep, {name: best[name]})
    return {other: value for other, value in prior_of(sweep).items() if other != name}


def probed_rates(sweep: SweepSpec) -> tuple[float, ...]:
    """Return the learning rates, all above the prior, at which the loss after one step is measured; may be empty."""
    rates = rate_range(sweep)
    if rates is None or not brackets_rate(sweep) or _is_fp16(sweep):
        return ()
    first = prior_of(sweep)[varied_rate_name(sweep)]
    if first >= rates.max:
        return ()
    return tuple(rate for rate in Range(min=first, max=rates.max, log=True).values(_PROBED) if rate > first)


def _is_fp16(sweep: SweepSpec) -> bool:
    """Whether the first trial is trained in fp16. Its first steps change no weight, until the loss scale has fallen."""
    given = {field_meant(name): value for name, value in prior_of(sweep).items()}
    return bool(given.get("train.fp16", sweep.base.train.fp16))


def probe_steps(sweep: SweepSpec) -> float:
    """Return the cost of the measurement at `probed_rates`, in optimizer steps; 0 if there is none."""
    return PROBE_STEPS if probed_rates(sweep) else 0.0


def greatest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the upper bound of useful rates: from it on, one step clearly raises the loss. None if there is none.

    Args:
        rates: in ascending order.
        losses: before the step, and after it at each rate.
    """
    before, *after = losses
    worse = [not loss <= before + _EXCESSIVE * abs(before) for loss in after]  # NaN counts as worse
    return next((rate for place, rate in enumerate(rates) if all(worse[place:])), None)


def bounded(sweep: SweepSpec, greatest: float) -> SweepSpec:
    """Return the sweep with this upper end of the range of learning rates, if it lies inside the range."""
    rates = rate_range(sweep)
    if rates is None or not rates.min < greatest < rates.max:
        return sweep
    narrowed = {varied_rate_name(sweep): rates.model_copy(update={"max": greatest})}
    return sweep.model_copy(update={"space": {**sweep.dimensions, **narrowed}})
