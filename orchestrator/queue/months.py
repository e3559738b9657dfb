"""Calendar months in UTC, and the GPU-hours that tenants use in a month. Pure functions and values."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import HOLDS_A_LEASE
from orchestrator.queue.tenants import Tenant

_HOUR_S = 3600.0


def month_around(at_s: float) -> tuple[float, float]:
    """Return begin and end of the month that contains `at_s`, in seconds since 1970."""
    begin = utc(at_s).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return begin.timestamp(), next_month(begin).timestamp()


def next_month(at: datetime.datetime) -> datetime.datetime:
    """Return the begin of the month after the one that contains `at`."""
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + datetime.timedelta(days=32)).replace(day=1)


def utc(at_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC)


def month_of(at_s: float) -> str:
    """Format a month, as in `2026-11`."""
    return f"{utc(at_s):%Y-%m}"


class MonthTotal(NamedTuple):
    """What a tenant has held in one month (`2026-11`): GPU-seconds, CPU-seconds of gangs without GPUs, and jobs."""

    month: str
    tenant: str
    gpu_s: float
    cpu_s: float
    jobs: int


def _by_month(lease: Lease, now_s: float) -> Iterator[tuple[str, float]]:
    """Yield (month, seconds in it) for a lease. If a clock went back and its end is before its grant, it is 0 s."""
    end_s = max(now_s if lease.released_s is None else lease.released_s, lease.granted_s)
    begin = utc(lease.granted_s)
    while True:
        following = next_month(begin)
        until_s = min(end_s, following.timestamp())
        yield f"{begin:%Y-%m}", until_s - begin.timestamp()
        if until_s >= end_s:
            return
        begin = following


def totals_of(leases: Iterable[Lease], now_s: float = 0.0) -> list[MonthTotal]:
    """Sum leases by month and tenant. A job counts once a month. `now_s`: end of leases that are still held."""
    held: dict[tuple[str, str], tuple[list[float], set[str]]] = {}
    for lease in leases:
        gang = lease.gang
        for month, seconds in _by_month(lease, now_s):
            sums, jobs = held.setdefault((month, lease.tenant), ([0.0, 0.0], set()))
            each = gang.gpus_per_worker or gang.cpus_per_worker
            sums[0 if gang.gpus_per_worker else 1] += gang.num_workers * each * seconds
            jobs.add(lease.job_id)
    return [MonthTotal(*key, sums[0], sums[1], len(jobs)) for key, (sums, jobs) in sorted(held.items())]


def added_up(totals: Iterable[MonthTotal]) -> list[MonthTotal]:
    """Merge totals of the same month and tenant."""
    found: dict[tuple[str, str], MonthTotal] = {}
    for one in totals:
        key = (one.month, one.tenant)
        known = found.get(key, MonthTotal(*key, 0.0, 0.0, 0))
        found[key] = MonthTotal(*key, known.gpu_s + one.gpu_s, known.cpu_s + one.cpu_s, known.jobs + one.jobs)
    return [found[key] for key in sorted(found)]


def spent(tenants: Iterable[Tenant], gpu_hours: Mapping[str, float]) -> frozenset[str]:
    """Return the names of tenants that have used up their GPU-hours of the month."""
    return frozenset(
        tenant.name
        for tenant in tenants
        if (most := tenant.restrictions.max_gpu_hours_per_month) is not None and gpu_hours.get(tenant.name, 0.0) >= most
    )


class _Held(NamedTuple):
    tenant: str
    gpus: int
    since_s: float


class MonthUse:
    """GPU-hours of the current month by tenant, carried forward from pass to pass.

    When a server becomes leader, it adds up the leases of the month once. From then on the jobs that hold leases are
    enough: a lease, or a part of it, ends in the pass in which its job is first seen without it.
    """

    def __init__(self, released: Iterable[MonthTotal], now_s: float) -> None:
        """`released`: totals of the leases of this month that have ended, one for each tenant."""
        self._begin_s, self._end_s = month_around(now_s)
        self._held: dict[str, _Held] = {}
        self._released = defaultdict(float, {total.tenant: total.gpu_s for total in released})  # GPU-seconds

    def advance(self, jobs: Sequence[Job], now_s: float) -> Mapping[str, float]:
        """Return GPU-hours by tenant. `jobs`: all jobs that have not ended, as of `now_s`."""
        if now_s >= self._end_s:
            self._begin_s, self._end_s = month_around(now_s)
            self._released.clear()
        holding = {
            job.submission: _Held(job.tenant, job.gang.num_workers * job.gang.gpus_per_worker, job.started_s)
            for job in jobs
            if job.state in HOLDS_A_LEASE and job.started_s is not None
        }
        for name, held in self._held.items():
            still = holding[name].gpus if name in holding else 0
            self._released[held.tenant] += max(held.gpus - still, 0) * self._seconds(held, now_s)
        self._held = holding
        used = self._released.copy()
        for held in holding.values():
            used[held.tenant] += held.gpus * self._seconds(held, now_s)
        return {tenant: gpu_s / _HOUR_S for tenant, gpu_s in used.items()}

    def _seconds(self, held: _Held, until_s: float) -> float:
        return max(until_s - max(held.since_s, self._begin_s), 0.0)
