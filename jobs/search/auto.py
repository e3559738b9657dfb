"""Where `auto` looks: the learning rate first, the other fields afterwards, at the best rate. Pure; light to import."""

from __future__ import annotations

from typing import Any, Final

from jobs.search.prior import RATE
from jobs.search.spec import Range, SweepSpec
from jobs.search.varying import field_meant

STEP: Final = 3.0  # from the prior's learning rate to the next ones that are tried


def rate_name(sweep: SweepSpec) -> str | None:
    """The name of the learning rate in the space; None: it does not vary."""
    return next((name for name in sweep.dimensions if field_meant(name) == RATE), None)


def first_points(sweep: SweepSpec) -> list[dict[str, Any]]:
    """Values that are tried before a model proposes any: the prior, and higher and lower rates."""
    name = rate_name(sweep)
    rates = sweep.dimensions[name] if name is not None else ()
    if name is None or not isinstance(rates, Range):
        return [dict(sweep.prior)]
    middle = float(str(sweep.prior[name]))
    around = (middle, min(middle * STEP, rates.max), max(middle / STEP, rates.min))
    return [{**sweep.prior, name: rate} for rate in dict.fromkeys(around)]


def fixed_values(sweep: SweepSpec, straight: bool, best: dict[str, Any]) -> dict[str, Any]:
    """Values that a proposal has to have.

    Args:
        straight: it is one of the last trials, at the rate of `best`.
    """
    name = rate_name(sweep)
    if name is None:
        return {}
    if straight:
        return {name: best[name]}
    return {other: value for other, value in sweep.prior.items() if other != name}
