"""The learning rate as a pure function of the step. It equals the one of transformers' `get_scheduler`.

The test tests/integration/jobs/planning/test_schedule_matches_transformers.py compares whole runs. `vertex_of` finds
the best of a few rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from jobs.planning.steps import warmup_steps
from jobs.spec.finetune import SchedulerType, Train


def learning_rate_at(step: int, train: Train, total_steps: int) -> float:
    """Return the rate of optimizer step `step`, counted from 0.

    Raises:
        SpecError: the warmup is longer than the run.
    """
    warmup = warmup_steps(train, total_steps)
    if step < warmup:
        return train.learning_rate * (step / warmup)
    return train.learning_rate * _SHAPES[train.lr_scheduler_type](step, warmup, total_steps, train)


def decay_steps(train: Train, total_steps: int) -> int:
    """Return the number of decaying steps at the end, for warmup_stable_decay; limited by what the warmup leaves."""
    return min(math.ceil(train.decay_ratio * total_steps), total_steps - warmup_steps(train, total_steps))


def vertex_of(scores: Mapping[float, float]) -> float | None:
    """Return the place of the minimum of the parabola through three points; None if it has no minimum."""
    (x1, y1), (x2, y2), (x3, y3) = sorted(scores.items())
    if not math.isfinite(y1 + y2 + y3):
        return None
    rise, next_rise = (y2 - y1) / (x2 - x1), (y3 - y2) / (x3 - x2)
    bend = (next_rise - rise) / (x3 - x1)
    return (x1 + x2) / 2 - rise / (2 * bend) if bend > 0 else None


def _stable_then_decay(step: int, warmup: int, total: int, train: Train) -> float:
    decay = decay_steps(train, total)
    if step < total - decay:
        return 1.0
    return _half_cosine((step - (total - decay)) / max(1, decay)) if step < total else 0.0


def _half_cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


_SHAPES: dict[SchedulerType, Callable[[int, int, int, Train], float]] = {
    "linear": lambda step, warmup, total, train: max(0.0, (total - step) / max(1, total - warmup)),
    "cosine": lambda step, warmup, total, train: _half_cosine((step - warmup) / max(1, total - warmup)),
    "constant_with_warmup": lambda step, warmup, total, train: 1.0,
    "warmup_stable_decay": _stable_then_decay,
}
