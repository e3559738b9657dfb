"""When jobs that wait will start: the queue is run forward by the functions that plan it.

Nobody knows what is still to be submitted, nor how long jobs run that have measured nothing. So a forecast is a range:
the same queue with all remaining times shorter, as they are, and longer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from orchestrator.scheduling.decisions import Start
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.table import RUNNING, Floats
from orchestrator.scheduling.world import Attempt, Measuring, World

SHORTER, LONGER = 0.6, 1.6  # times the remaining times
_MOST_PASSES = 5000
_LEAST_S = 60.0


@dataclass(frozen=True)
class Expected:
    """Seconds from now; None: not within what was looked at."""

    start_s: float | None
    earliest_s: float | None
    latest_s: float | None


def expected_starts(
    snapshot: Snapshot, policy: Policy, rows: Collection[int], typical_s: float, horizon_s: float = 30 * 86_400.0
) -> dict[int, Expected]:
    """When these waiting jobs are expected to get their nodes.

    Args:
        typical_s: running time that a job is taken to have if nobody has measured or declared anything.
        horizon_s: how far to look ahead.
    """
    early, likely, late = (
        _starts(snapshot, policy, frozenset(rows), _left_s(snapshot, typical_s) * factor, horizon_s)
        for factor in (SHORTER, 1.0, LONGER)
    )
    return {row: _range(early.get(row), likely.get(row), late.get(row)) for row in rows}


def _left_s(snapshot: Snapshot, typical_s: float) -> Floats:
    """[rows]; measured; else what is typical, if that is less than what was declared."""
    jobs = snapshot.jobs
    told: Floats = np.where(np.isnan(jobs.remaining_s), np.minimum(jobs.most_left_s, typical_s), jobs.remaining_s)
    return np.maximum(told, _LEAST_S)


def _starts(
    snapshot: Snapshot, policy: Policy, wanted: frozenset[int], left_s: Floats, horizon_s: float
) -> dict[int, float]:
    found: dict[int, float] = {}
    world = World.of(snapshot, policy, left_s, Measuring(), _nothing)
    for _ in range(_MOST_PASSES):
        for decision in world.decide().decisions:
            if isinstance(decision, Start) and decision.row in wanted:
                found.setdefault(decision.row, world.now_s - snapshot.now_s)
        ahead_s = world.next_event_s
        if len(found) == len(wanted) or ahead_s > snapshot.now_s + horizon_s:
            break
        world.advance(ahead_s)
    return found


def _nothing(attempt: Attempt) -> None:
    pass


def _range(early: float | None, likely: float | None, late: float | None) -> Expected:
    """Longer times of others can also bring a start forward: the range holds all that was seen."""
    seen = [at for at in (early, likely, late) if at is not None]
    unknown = late is None
    return Expected(likely, min(seen, default=None), None if unknown or not seen else max(seen))


def ends_s(snapshot: Snapshot) -> Floats:
    """[rows]; when each running job ends, as far as anybody knows; inf where nobody does."""
    running = snapshot.jobs.state == RUNNING
    ends: Floats = np.where(running, snapshot.now_s + snapshot.left_s, np.inf)
    return ends
