"""Describes a sweep's spec in words. Pure; light to import."""

from __future__ import annotations

import math
from typing import Any

from jobs.search.rules.budget import FINALISTS, finalists_of, most_trials, plan_of_long_runs
from jobs.search.rules.varying import field_meant, short_name
from jobs.spec.space import Range
from jobs.spec.sweep import SweepSpec


def format_sweep(sweep: SweepSpec) -> str:
    """Describe a sweep: `tpe, halving at 25% and 50% of a run, at most 16 trials; the least eval_loss is best`."""
    judged = f"the {'least' if sweep.lower_is_better else 'greatest'} {sweep.judged} is best"
    rungs = " and ".join(f"{rung:.0%}" for rung in sweep.rung_shares)
    scheduler = "" if sweep.scheduler == "none" else f", {sweep.scheduler} at {rungs} of a run"
    given = sweep.budget.model_dump(exclude_none=True)
    if math.isfinite(most := most_trials(sweep)):  # fewer than the budget's if the grid is small
        given["trials"] = int(most)
    bounds = ", ".join(_format_bound(name, value) for name, value in given.items())
    return f"{sweep.algorithm}{scheduler}, at most {bounds}{_repeats(sweep)}; {judged}"


def _format_bound(name: str, value: float) -> str:
    unit = name.replace("_", " ")
    return f"{value:,} {unit.removesuffix('s') if value == 1 else unit}"


def _repeats(sweep: SweepSpec) -> str:
    """Describe the repeats: `; then the two best with 3 seeds each`; empty: there are none."""
    if sweep.seeds == 1:
        return ""
    budget = sweep.budget
    if finalists_of(sweep, plan_of_long_runs(sweep)) < FINALISTS:
        return f"; then the best with {sweep.seeds} seeds"
    if sweep.scheduler != "asha" and budget.minutes is budget.gpu_hours is budget.tokens is None:
        return f"; then the two best with {sweep.seeds} seeds each"
    return f"; then the best, at most two, with {sweep.seeds} seeds each"


def format_prior(sweep: SweepSpec, source: str | None) -> str:
    """Describe the prior: `, beginning at learning_rate 0.0001, warmup_ratio 0.1 (the rate from ...)`; empty: none.

    Args:
        source: where the learning rate comes from, in words; None: the spec gives it.
    """
    if not sweep.prior:
        return ""
    said = [f"{short_name(name)} {_number(value)}" for name, value in sweep.prior.items()]
    return f", beginning at {', '.join(said)}{f' (the rate from {source})' if source else ''}"


def format_space(sweep: SweepSpec) -> str:
    """Describe the space: `learning_rate 1e-05..0.001 (log), lr_scheduler_type linear|cosine`."""
    return ", ".join(f"{short_name(name)} {_values(values)}" for name, values in sweep.dimensions.items())


def format_varied(sweep: SweepSpec) -> dict[str, str]:
    """Describe the values of each field of the space, by the field's full dotted name."""
    return {field_meant(name): _values(values) for name, values in sweep.dimensions.items()}


def _values(values: Range | tuple[Any, ...]) -> str:
    if isinstance(values, tuple):
        return "|".join(str(value) for value in values)
    return f"{_number(values.min)}..{_number(values.max)}{' (log)' if values.log else ''}"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
