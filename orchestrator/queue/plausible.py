"""Bounds for the numbers that drivers report.

The scheduler weighs jobs by these numbers, and a driver may report wrong ones, by mistake or to its own advantage. All
of them pass through `plausible` before they reach the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from jobs.drivers.link.messages import MOST_STEPS
from orchestrator.queue.records import Job, Measured

LONGEST_S: Final = 10 * 365 * 86_400.0  # seconds; no run takes longer than ten years
LARGEST_METRIC: Final = 1e30
RESTART_S: Final = 3_600.0  # seconds; most that saving and starting again cost, beside the lost work


def plausible(said: Measured, job: Job, now_s: float) -> Measured:
    """Return the report with every number within its bounds. Numbers that are not finite are dropped.

    An interruption costs at most the time of this attempt, plus an allowance for saving and starting again.
    """
    held_s = max(now_s - job.started_s, 0.0) if job.started_s is not None else 0.0
    return replace(
        said,
        step=_whole(said.step),
        total_steps=_whole(said.total_steps),
        remaining_s=_within(said.remaining_s, LONGEST_S),
        interruption_cost_s=_within(said.interruption_cost_s, min(held_s + RESTART_S, LONGEST_S)),
        metrics=None if said.metrics is None else _metrics(said.metrics),
    )


def _within(value: float | None, most: float) -> float | None:
    return min(max(value, 0.0), most) if value is not None and math.isfinite(value) else None


def _whole(value: int | None) -> int | None:
    return None if value is None else min(max(value, 0), MOST_STEPS)


def _metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    finite = ((name, value) for name, value in metrics.items() if math.isfinite(value))
    return {name: min(max(value, -LARGEST_METRIC), LARGEST_METRIC) for name, value in finite}
