"""A sweep's spec in words. Pure; light to import."""

from __future__ import annotations

from typing import Any

from jobs.search.spec import Range, SweepSpec


def sweep_words(sweep: SweepSpec) -> str:
    """`tpe, halving at 25% and 50% of a run, at most 16 trials; the least eval_loss is best`."""
    judged = f"the {'least' if sweep.lower_is_better else 'greatest'} {sweep.judged} is best"
    rungs = " and ".join(f"{rung:.0%}" for rung in sweep.rungs)
    halts = "" if sweep.scheduler == "none" else f", {sweep.scheduler} at {rungs} of a run"
    given = sweep.budget.model_dump(exclude_none=True)
    bounds = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in given.items())
    return f"{sweep.algorithm}{halts}, at most {bounds}; {judged}"


def space_words(sweep: SweepSpec) -> str:
    """`learning_rate 1e-05..0.001 (log), warmup_ratio 0..0.2, lr_scheduler_type linear|cosine`."""
    return ", ".join(f"{name} {_values(values)}" for name, values in sweep.dimensions.items())


def _values(values: Range | tuple[Any, ...]) -> str:
    if isinstance(values, tuple):
        return "|".join(str(value) for value in values)
    return f"{values.min:g}..{values.max:g}{' (log)' if values.log else ''}"
