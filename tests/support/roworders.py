"""Rows at single positions of a row order, and how often a mixture uses each section."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.data.order.mixture import Mixture
from jobs.data.order.permutation import Rows
from jobs.data.order.row_order import RowOrder


def rows_at(order: RowOrder, positions: Sequence[int] | Rows) -> list[int]:
    return [int(order.rows_between(position, position + 1)[0]) for position in map(int, positions)]


def used(mixture: Mixture, stop: int) -> tuple[int, ...]:
    """How many of the first `stop` positions use each section: whole cycles are counted, the rest is looked at."""
    counts = np.zeros(len(mixture.sections), dtype=np.int64)
    for phase in mixture._phases:
        if phase.start >= stop:
            break
        cycles, rest = divmod(min(stop, phase.stop or stop) - phase.start, phase.cycle)
        counts[list(phase.sections)] += phase.counts(cycles)
        begin = phase.start + cycles * phase.cycle
        counts += counts_of(mixture, mixture.rows_between(begin, begin + rest))
    return tuple(counts.tolist())


def shares_of(mixture: Mixture, start: int, stop: int) -> tuple[int, ...]:
    return tuple(after - before for before, after in zip(used(mixture, start), used(mixture, stop), strict=True))


def counts_of(mixture: Mixture, rows: Rows) -> list[int]:
    """How many of the rows are of each section."""
    stops = np.cumsum([section.rows for section in mixture.sections])
    counts: list[int] = np.bincount(np.searchsorted(stops, rows, side="right"), minlength=len(stops)).tolist()
    return counts
