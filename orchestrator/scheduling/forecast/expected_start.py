"""When jobs that wait will start: the queue is run forward by the functions that plan it.

Nobody knows what is still to be submitted, nor how long jobs run that have measured nothing: these are taken to be
spread as the jobs that ended lately were. So a forecast is a range: the same queue with all remaining times shorter, as
they are, and longer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.scheduling.forecast.queue_simulation import Attempt, Measuring, World
from orchestrator.scheduling.job_table import RUNNING, Floats
from orchestrator.scheduling.plan.decisions import Start
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot

SHORTER, LONGER = 0.6, 1.6  # times the remaining times
EARLIER, LATER = 0.9, 1.5  # times the starts that come of that: nobody knows who is still to come
USUAL_S = (120.0, 600.0, 1800.0, 3600.0, 14_400.0)  # run times where nothing has ended yet
_MOST_PASSES = 5000
_LEAST_S = 60.0
_TICK_S, _TICK_SHARE = 30.0, 0.05  # the queue is looked at less often the further ahead it is
_GOLDEN = 0.6180339887498949  # multiples of it, less their whole parts, are spread evenly however many there are


@dataclass(frozen=True)
class Expected:
    """Seconds from now; None: not within what was looked at."""

    start_s: float | None
    earliest_s: float | None
    latest_s: float | None


def expected_starts(
    snapshot: Snapshot, policy: Policy, rows: Collection[int], ran_s: Sequence[float], horizon_s: float = 30 * 86_400.0
) -> dict[int, Expected]:
    """When these waiting jobs are expected to get their nodes.

    Args:
        ran_s: run times of some jobs that have ended lately; USUAL_S where there are none.
        horizon_s: how far to look ahead.
    """
    left_s = _left_s(snapshot, ran_s or USUAL_S)
    early, likely, late = (
        _starts(snapshot, policy, frozenset(rows), left_s * factor, horizon_s) for factor in (SHORTER, 1.0, LONGER)
    )
    return {row: _range(early.get(row), likely.get(row), late.get(row)) for row in rows}


def rough_start(snapshot: Snapshot, before: Sequence[int], ran_s: Sequence[float]) -> Expected:
    """The same of a job far back in a long queue, from the work before it alone.

    All of it, shared out over the cluster, would be done some time after the job has started: by then, what still runs
    has half of E[t^2] / E[t] left, as what is met of intervals at a random moment has.

    Args:
        before: rows of the waiting jobs that go first.
    """
    left_s = _left_s(snapshot, ran_s or USUAL_S)
    rows = np.concatenate((snapshot.running.nonzero()[0], np.array(before, np.intp)))
    slots = float(snapshot.cluster.sizes[snapshot.cluster.usable].sum())
    if not slots:
        return Expected(None, None, None)
    work = left_s[rows] * snapshot.jobs.size[rows]
    still_runs_s = float((work * left_s[rows]).sum() / (2.0 * work.sum())) if len(rows) else 0.0
    start_s = max(float(work.sum()) / slots - still_runs_s, 0.0)
    return Expected(start_s, EARLIER * SHORTER * start_s, LATER * LONGER * start_s)


def _left_s(snapshot: Snapshot, ran_s: Sequence[float]) -> Floats:
    """[rows]; as measured; else what jobs had left that had run as long, each job another one of them."""
    jobs = snapshot.jobs
    past = np.sort(np.array(ran_s, float))
    done = jobs.attained_s + (snapshot.now_s - jobs.started_s) * snapshot.running
    from_ = np.searchsorted(past, done, side="right")
    draw = (np.arange(jobs.rows) * _GOLDEN + 0.5) % 1.0
    like = past[np.minimum((from_ + draw * (len(past) - from_)).astype(int), len(past) - 1)]
    guess = np.where(from_ < len(past), like - done, done)  # longer than any: as long again
    told: Floats = np.where(np.isnan(jobs.remaining_s), np.minimum(jobs.most_left_s, guess), jobs.remaining_s)
    return np.maximum(told, _LEAST_S)


def _starts(
    snapshot: Snapshot, policy: Policy, wanted: frozenset[int], left_s: Floats, horizon_s: float
) -> dict[int, float]:
    found: dict[int, float] = {}
    world = World.of(snapshot, policy, left_s, Measuring(), _nothing)
    for _ in range(_MOST_PASSES):
        ahead_s = world.now_s - snapshot.now_s
        for decision in world.decide().decisions:
            if isinstance(decision, Start) and decision.row in wanted:
                found.setdefault(decision.row, ahead_s)
        world.tick_s = max(_TICK_S, _TICK_SHARE * ahead_s)
        if len(found) == len(wanted) or world.next_event_s > snapshot.now_s + horizon_s:
            break
        world.advance(world.next_event_s)
    return found


def _nothing(attempt: Attempt) -> None:
    pass


def _range(early: float | None, likely: float | None, late: float | None) -> Expected:
    """Longer times of others can also bring a start forward: the range holds all that was seen."""
    seen = [at for at in (early, likely, late) if at is not None]
    unknown = late is None
    earliest, latest = (EARLIER * min(seen), LATER * max(seen)) if seen else (None, None)
    return Expected(likely, earliest, None if unknown else latest)


def ends_s(snapshot: Snapshot) -> Floats:
    """[rows]; when each running job ends, as far as anybody knows; inf where nobody does."""
    running = snapshot.jobs.state == RUNNING
    ends: Floats = np.where(running, snapshot.now_s + snapshot.left_s, np.inf)
    return ends
