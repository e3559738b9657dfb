"""The number of optimizer steps of a run, and of its warmup. Pure."""

from __future__ import annotations

import math
from fractions import Fraction

from cluster.errors import SpecError
from cluster.text import many
from jobs.spec.finetune import Spec, Train

DEFAULT_EPOCHS = 3.0


def total_steps(spec: Spec, num_rows: int, rows_per_step: int) -> int:
    """Return the optimizer steps of the whole run. The last step of the last epoch may have fewer rows.

    Args:
        num_rows: training rows of the prepared data.
        rows_per_step: global rows of one step, `Batching.rows`.
    """
    return -(-total_rows(spec, num_rows, rows_per_step) // rows_per_step)


def total_rows(spec: Spec, num_rows: int, rows_per_step: int) -> int:
    """Return the rows that the whole run trains on, counting repetitions; at least 1. Arguments: see `total_steps`."""
    if spec.train.max_steps is not None:
        return spec.train.max_steps * rows_per_step
    epochs = spec.train.num_train_epochs or DEFAULT_EPOCHS
    # Fraction takes the decimal that the user wrote: 0.1 of 30 rows is 3 rows, not 3.0000000000000004.
    return max(1, math.ceil(Fraction(repr(epochs)) * num_rows))


def warmup_steps(train: Train, total: int) -> int:
    """Return the optimizer steps of the warmup. A fraction of a step is rounded up, as in transformers.

    Raises:
        SpecError: the warmup is longer than the run.
    """
    if train.warmup_ratio is not None:
        return math.ceil(total * train.warmup_ratio)
    if train.warmup_steps is None or train.warmup_steps < 1:
        return math.ceil(total * (train.warmup_steps or 0.0))
    if train.warmup_steps > total:
        raise SpecError(
            f"warmup_steps ({int(train.warmup_steps)}) is longer than the run of {many(total, 'step')}: "
            "lower it, give warmup_ratio instead, or train longer (num_train_epochs, max_steps)"
        )
    return int(train.warmup_steps)
