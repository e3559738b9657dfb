"""Figures of a simulation: of all jobs, of each tenant, and the GPUs in use and waited for over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.scheduling.forecast.queue_simulation import EndReason
from orchestrator.simulate.values import Simulated

BIG_GANG = 8  # least GPUs
SHORTEST_S = 60.0  # bound of the bounded slowdown: shorter run times count as this long

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figures:
    """The figures of one simulation, over all its jobs. Times are in seconds.

    The completion time (jct) of a job is the time from its submission in the trace to its end. Its wait is the part of
    that time without progress, including interruptions and their cost. Its bounded slowdown is jct / duration, at least
    1; a duration below 60 s counts as 60 s.
    """

    policy: str
    mean_jct_s: float
    median_jct_s: float
    p90_jct_s: float
    p99_jct_s: float
    mean_wait_s: float
    mean_bounded_slowdown: float
    utilisation: float  # 0..1: share of the GPUs in use between the first and the last submission
    jain: float  # 1/tenants..1: Jain's index of the tenants' mean bounded slowdowns; 1: equal
    longest_wait_s: float
    preemptions: int  # number of times that the scheduler interrupted a job
    most_preemptions_of_a_job: int
    lost_gpu_share: float  # GPU-seconds that interruptions added, relative to those of the trace
    slowdown_of_big_gangs: float | None  # mean bounded slowdown of gangs of at least 8 GPUs; None: there are none
    makespan_s: float  # from the first submission to the last completion
    wall_s: float  # duration of the simulation itself


@dataclass(frozen=True)
class TenantFigures:
    """The figures of one tenant."""

    tenant: str
    jobs: int
    gpu_s: float  # GPU-seconds held, including lost work
    mean_wait_s: float
    longest_wait_s: float
    mean_bounded_slowdown: float


@dataclass(frozen=True)
class OverTime:
    """Mean numbers of GPUs in spans of time. `edges_s` counts from the first submission.

    `in_use` and `waiting` are [tenants, spans]; `tenants` names the rows.
    """

    edges_s: Floats
    tenants: tuple[str, ...]
    in_use: Floats
    waiting: Floats


def figures(simulated: Simulated) -> Figures:
    """Compute the figures of a simulation with at least one job, all of which have finished."""
    arrays = _Arrays(simulated)
    slowdown, big = arrays.slowdown, arrays.gpus >= BIG_GANG
    per_job = np.bincount(arrays.job[arrays.preempted], minlength=len(arrays.gpus))
    median, p90, p99 = np.percentile(arrays.jct, (50, 90, 99))
    work = float((arrays.duration * arrays.gpus).sum())
    return Figures(
        policy=simulated.setup.policy,
        mean_jct_s=float(arrays.jct.mean()),
        median_jct_s=float(median),
        p90_jct_s=float(p90),
        p99_jct_s=float(p99),
        mean_wait_s=float(arrays.wait.mean()),
        mean_bounded_slowdown=float(slowdown.mean()),
        utilisation=_utilisation(arrays, simulated.setup.nodes * simulated.setup.gpus_per_node),
        jain=_jain(arrays.mean_by_tenant(slowdown)),
        longest_wait_s=float(arrays.wait.max()),
        preemptions=int(per_job.sum()),
        most_preemptions_of_a_job=int(per_job.max()),
        lost_gpu_share=float((arrays.lost * arrays.held).sum()) / work,
        slowdown_of_big_gangs=float(slowdown[big].mean()) if big.any() else None,
        makespan_s=float(arrays.end.max() - arrays.submit.min()),
        wall_s=float(simulated.wall_s),
    )


def tenant_figures(simulated: Simulated) -> tuple[TenantFigures, ...]:
    """Compute the figures of each tenant, those with the most GPU-seconds first."""
    arrays = _Arrays(simulated)
    held_s = (arrays.end - arrays.start) * arrays.held
    gpu_s = np.bincount(arrays.tenant[arrays.job], weights=held_s, minlength=len(arrays.tenants))
    waits, slowdowns = arrays.mean_by_tenant(arrays.wait), arrays.mean_by_tenant(arrays.slowdown)
    longest = np.zeros(len(arrays.tenants))
    np.maximum.at(longest, arrays.tenant, arrays.wait)
    columns = (np.bincount(arrays.tenant), gpu_s, waits, longest, slowdowns)
    found = map(TenantFigures, arrays.tenants, *(column.tolist() for column in columns))
    return tuple(sorted(found, key=lambda one: -one.gpu_s))


def over_time(simulated: Simulated, spans: int) -> OverTime:
    """Compute the GPUs in use and the GPUs that submitted jobs wait for, in equal spans of the simulation."""
    arrays = _Arrays(simulated)
    zero = arrays.submit.min()
    edges = np.linspace(0.0, arrays.end.max() - zero, spans + 1)
    order = np.lexsort((arrays.start, arrays.job))
    job, start, end = arrays.job[order], arrays.start[order] - zero, arrays.end[order] - zero
    since = np.empty_like(end)  # begin of the wait before each attempt
    since[1:] = end[:-1]
    first = np.r_[True, job[1:] != job[:-1]]
    since[first] = arrays.submit[job[first]] - zero
    gpus, tenant = arrays.gpus[job], arrays.tenant[job]
    return OverTime(
        edges_s=edges,
        tenants=tuple(arrays.tenants),
        in_use=_means(edges, start, end, gpus, tenant, len(arrays.tenants)),
        waiting=_means(edges, since, start, gpus, tenant, len(arrays.tenants)),
    )


class _Arrays:
    """The columns of a simulation: jobs by row of the trace, and attempts."""

    def __init__(self, simulated: Simulated) -> None:
        jobs, attempts = simulated.jobs, simulated.attempts
        self.submit: Floats = np.array([job.submit_s for job in jobs], dtype=float)
        self.duration: Floats = np.array([job.duration_s for job in jobs], dtype=float)
        self.gpus: Ints = np.array([job.num_gpus for job in jobs], dtype=np.int64)
        numbers = {name: at for at, name in enumerate(dict.fromkeys(job.tenant for job in jobs))}
        self.tenants = list(numbers)
        self.tenant: Ints = np.array([numbers[job.tenant] for job in jobs], dtype=np.int64)

        self.job: Ints = np.array([one.row for one in attempts], dtype=np.int64)
        self.start: Floats = np.array([one.start_s for one in attempts], dtype=float)
        self.end: Floats = np.array([one.end_s for one in attempts], dtype=float)
        self.lost: Floats = np.array([one.lost_s for one in attempts], dtype=float)
        preempted = (EndReason.PREEMPTED, EndReason.MOVED)
        self.preempted = np.array([one.reason in preempted for one in attempts], dtype=bool)
        self.held: Ints = self.gpus[self.job]  # GPUs held in each attempt

        completion = np.full(len(jobs), -np.inf)
        np.maximum.at(completion, self.job, self.end)
        self.jct: Floats = completion - self.submit
        # Negative values are rounding errors: no job runs shorter than its duration.
        self.wait: Floats = np.maximum(self.jct - self.duration, 0.0)
        self.slowdown: Floats = np.maximum(self.jct / np.maximum(self.duration, SHORTEST_S), 1.0)

    def mean_by_tenant(self, values: Floats) -> Floats:
        """Return the mean of each tenant's jobs; `values`: [jobs]."""
        return np.bincount(self.tenant, weights=values) / np.bincount(self.tenant)


def _utilisation(arrays: _Arrays, gpus: int) -> float:
    """Return the utilisation; 0 if all jobs were submitted at the same time."""
    first, last = arrays.submit.min(), arrays.submit.max()
    if last <= first:
        return 0.0
    within = np.clip(arrays.end, first, last) - np.clip(arrays.start, first, last)
    return float((within * arrays.held).sum() / (gpus * (last - first)))


def _jain(values: Floats) -> float:
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))


def _means(edges: Floats, start: Floats, end: Floats, weight: Ints, row: Ints, rows: int) -> Floats:
    """Return the mean weight of active intervals [start, end) in each span; shape (rows, spans)."""
    sums = np.zeros((rows, len(edges)))
    for at in range(rows):
        its = row == at
        sums[at] = _ramp(edges, start[its], weight[its]) - _ramp(edges, end[its], weight[its])
    widths = np.diff(edges)
    means = np.divide(np.diff(sums, axis=1), widths, out=np.zeros((rows, len(widths))), where=widths > 0)
    return np.maximum(means, 0.0)


def _ramp(edges: Floats, begin: Floats, weight: Ints) -> Floats:
    """Return, at each edge, the sum of weight x seconds since `begin` over intervals that have begun."""
    order = np.argsort(begin)
    begin, weight = begin[order], weight[order]
    weights = np.r_[0, np.cumsum(weight)]
    moments = np.r_[0.0, np.cumsum(weight * begin)]
    begun = np.searchsorted(begin, edges, side="right")
    sums: Floats = edges * weights[begun] - moments[begun]
    return sums
