"""Expected starts of waiting jobs: the queue is simulated with the functions that plan it.

Future submissions are unknown, and so are the run times of jobs that have measured nothing. These run times are taken
to be distributed like those of jobs that ended lately. A forecast is therefore a range: the queue is simulated three
times, with shorter, unchanged and longer remaining times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.scheduling.forecast.queue_simulation import Measuring, QueueSimulation
from orchestrator.scheduling.job_table import Floats
from orchestrator.scheduling.plan.decisions import Start
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot

SHORTER, LONGER = 0.6, 1.6  # factors on the remaining times of all jobs
EARLIER, LATER = 0.9, 1.5  # factors on the resulting starts, since future submissions are unknown
USUAL_S = (120.0, 600.0, 1800.0, 3600.0, 14_400.0)  # run times to assume before any job has ended
_HORIZON_S = 30 * 86_400.0  # how far ahead the queue is simulated
_MOST_PASSES = 5000
_LEAST_S = 60.0
# Most time between two simulated passes, in seconds and as a share of the time ahead, as a far forecast is vague.
_TICK_S, _TICK_SHARE = 30.0, 0.05
# Least time between two passes that ends of jobs lead to: on a large cluster, a job ends every second.
_GRAIN_S, _GRAIN_SHARE = 1.0, 0.02
_GOLDEN = 0.6180339887498949  # golden ratio - 1; the fractional parts of its multiples are evenly spread for any count


@dataclass(frozen=True)
class Expected:
    """When a job is expected to start, in seconds from now; None: not within the simulated time."""

    start_s: float | None
    earliest_s: float | None
    latest_s: float | None


def expected_starts(
    snapshot: Snapshot, policy: Policy, rows: Collection[int], ran_s: Sequence[float]
) -> dict[int, Expected]:
    """Simulate when some waiting jobs get their nodes.

    Args:
        rows: the waiting jobs.
        ran_s: run times of jobs that have ended lately; empty: USUAL_S.
    """
    left_s = _left_s(snapshot, ran_s or USUAL_S)
    early, likely, late = (
        _starts(snapshot, policy, frozenset(rows), left_s * factor) for factor in (SHORTER, 1.0, LONGER)
    )
    return {row: _range(early.get(row), likely.get(row), late.get(row)) for row in rows}


def rough_start(snapshot: Snapshot, before: Sequence[int], ran_s: Sequence[float]) -> Expected:
    """Estimate the start of a job far back in a long queue from the work before it, without a simulation.

    The work before the job, spread over the cluster, would be done some time after the job has started: at that moment
    the jobs that still run have on average half of E[t^2] / E[t] left (inspection paradox).

    Args:
        before: rows of the waiting jobs that go first.
        ran_s: see `expected_starts`.
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
    """[rows]; remaining times: as measured, else drawn from the past run times that are longer than the job's own."""
    jobs = snapshot.jobs
    past = np.sort(np.array(ran_s, float))
    done = jobs.attained_s + (snapshot.now_s - jobs.started_s) * snapshot.running
    from_ = np.searchsorted(past, done, side="right")
    draw = (np.arange(jobs.rows) * _GOLDEN + 0.5) % 1.0
    like = past[np.minimum((from_ + draw * (len(past) - from_)).astype(int), len(past) - 1)]
    guess = np.where(from_ < len(past), like - done, done)  # longer than every past run: assume as much again
    told = np.minimum(jobs.most_left_s, np.where(np.isnan(jobs.remaining_s), guess, jobs.remaining_s))
    return np.maximum(told, _LEAST_S)


def next_pass_s(event_s: float, tick_s: float, ended_s: float, ahead_s: float) -> float:
    """Return when to plan next in a simulation: at the next event, or later if one was planned for just before.

    Args:
        event_s: time of the next event.
        tick_s: latest time of the next plan while jobs run.
        ended_s: time of the last plan that an event led to.
        ahead_s: how far the simulation is ahead of the present.
    """
    if event_s >= tick_s:
        return event_s
    return min(max(event_s, ended_s + max(_GRAIN_S, _GRAIN_SHARE * ahead_s)), tick_s)


def _starts(snapshot: Snapshot, policy: Policy, wanted: frozenset[int], left_s: Floats) -> dict[int, float]:
    found, ended_s = dict[int, float](), -math.inf
    simulation = QueueSimulation.of(snapshot, policy, left_s, Measuring(), on_end=lambda attempt: None)
    for _ in range(_MOST_PASSES):
        ahead_s = simulation.now_s - snapshot.now_s
        for decision in simulation.decide().decisions:
            if isinstance(decision, Start) and decision.row in wanted:
                found.setdefault(decision.row, ahead_s)
        simulation.tick_s = max(_TICK_S, _TICK_SHARE * ahead_s)
        if len(found) == len(wanted) or simulation.next_event_s > snapshot.now_s + _HORIZON_S:
            break
        event_s, tick_s = simulation.next_event_s, simulation.now_s + simulation.tick_s
        next_s = next_pass_s(event_s, tick_s, ended_s, ahead_s)
        ended_s = next_s if event_s < tick_s else ended_s
        simulation.advance(next_s)
    return found


def _range(early: float | None, likely: float | None, late: float | None) -> Expected:
    """Return the range over all three simulations: longer run times can also bring a job's start forward."""
    seen = [at for at in (early, likely, late) if at is not None]
    return Expected(likely, EARLIER * min(seen) if seen else None, LATER * max(seen) if late is not None else None)
