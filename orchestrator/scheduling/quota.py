"""Quotas of tenants: guaranteed GPUs, and limits on GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy
from cluster.errors import CapacityError
from orchestrator.queue.tenants import Quota, Tenant
from orchestrator.scheduling.job_table import Floats, JobTable, Rows
from orchestrator.scheduling.snapshot import Snapshot

NOT_ENTITLED, ENTITLED_ANYWHERE = -2, -1  # other values: the kind of node that a job is entitled to
NOWHERE: frozenset[int] = frozenset()  # no kind of node

_Used = dict[str | None, float]  # accelerator type -> GPUs in use; None: of all types together


def entitlements(snapshot: Snapshot, score: Floats, priority_class: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """[rows]; which jobs are within their tenant's guarantee, and on which kind of nodes; None: no tenant has one.

    A tenant's higher classes are served first; within a class running jobs, oldest start first, then waiting ones by
    score.
    """
    guaranteed = [number for number, tenant in enumerate(snapshot.tenants) if tenant.guaranteed]
    if not guaranteed:
        return None
    jobs, cluster = snapshot.jobs, snapshot.cluster
    found = np.full(jobs.rows, NOT_ENTITLED, np.int32)
    active = ((snapshot.running | snapshot.waiting) & np.isin(jobs.tenant, guaranteed)).nonzero()[0]
    runs = snapshot.running[active]
    by = np.where(runs, jobs.started_s[active], score[active])
    order = active[np.lexsort((jobs.submitted_s[active], by, ~runs, -priority_class[active]))]
    used: dict[int, _Used] = {tenant: {} for tenant in guaranteed}
    for row in order.tolist():
        gang, tenant = jobs.gang_of(row), int(jobs.tenant[row])
        if gang.gpus_per_worker:
            on = [int(snapshot.kinds[row])] if snapshot.kinds[row] >= 0 else sorted(cluster.kinds_for(gang))
            quota = dict(snapshot.tenants[tenant].guaranteed)
            size = float(jobs.size[row])
            if row in snapshot.sizes:  # workers beyond its fewest are on lent slots
                size = snapshot.sizes[row][0] * float(gang.gpus_per_worker)
            found[row] = _claim(quota, used[tenant], on, cluster, size)
    return found


class Limits:
    """What each tenant may still take, while a plan is made.

    A job that its tenant's limit stops keeps that limit (`keep`): later jobs that count towards it do not overtake.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._cluster = snapshot.cluster
        self._limits = {number: tenant.limit for number, tenant in enumerate(snapshot.tenants) if tenant.limit}
        self._used: dict[int, _Used] = {number: {} for number in self._limits}
        self._kept: dict[int, set[str | None]] = {}  # limits by their accelerator type, as in `Quota`
        for row in snapshot.running.nonzero()[0].tolist() if self._limits else ():
            self.take(snapshot.jobs, row, int(snapshot.kinds[row]))

    def __bool__(self) -> bool:
        return bool(self._limits)

    def kinds(self, jobs: JobTable, row: int) -> frozenset[int] | None:
        """Kinds of nodes that the tenant's limit allows for the job; None: all."""
        tenant = int(jobs.tenant[row])
        if tenant not in self._limits:
            return None
        gang = jobs.gang_of(row)
        if not gang.gpus_per_worker:
            return None
        limit, used, size = self._limits[tenant], self._used[tenant], float(jobs.size[row])
        fits, types = self._cluster.kinds_for(gang), self._cluster.types
        kept: AbstractSet[str | None] = self._kept.get(tenant, frozenset())
        allowed = frozenset(
            kind
            for kind in fits
            if not _exceeded(limit, used, types[kind], size) and kept.isdisjoint((None, types[kind]))
        )
        return None if allowed == fits else allowed

    def keep(self, jobs: JobTable, row: int) -> None:
        """Keep the limits that stop this job for it. A job that can never start keeps nothing."""
        tenant, size = int(jobs.tenant[row]), float(jobs.size[row])
        limit, used = self._limits[tenant], self._used[tenant]
        types = {self._cluster.types[kind] for kind in self._cluster.kinds_for(jobs.gang_of(row))}
        stops = [_exceeded(limit, used, kind, size) for kind in types if not _exceeded(limit, {}, kind, size)]
        self._kept.setdefault(tenant, set()).update(*stops)

    def keep_nothing(self) -> None:
        self._kept.clear()

    def stopped(self, jobs: JobTable, rows: Rows) -> NDArray[np.bool_]:
        """[rows]; which waiting jobs exceed what their tenant may still take, on every kind of nodes."""
        codes = jobs.gang[rows].astype(np.int64) * (jobs.tenant.max(initial=0) + 1) + jobs.tenant[rows]
        _, first, which = np.unique(codes, return_index=True, return_inverse=True)
        return np.array([self.kinds(jobs, row) == NOWHERE for row in rows[first].tolist()], bool)[which]

    def take(self, jobs: JobTable, row: int, kind: int, sign: int = 1) -> None:
        """Count a job as placed on nodes of a kind; with sign -1, as stopped there."""
        tenant = int(jobs.tenant[row])
        if tenant in self._limits and jobs.gang_of(row).gpus_per_worker:
            used = self._used[tenant]
            # A job whose nodes are not seen now is of no kind.
            of_type = self._cluster.types[kind] if kind >= 0 else jobs.gang_of(row).accelerator_type
            for key in {None, of_type}:
                used[key] = used.get(key, 0.0) + sign * float(jobs.size[row])


def _claim(quota: dict[str | None, int], used: _Used, kinds: Iterable[int], cluster: Occupancy, size: float) -> int:
    """Claim a guarantee for a job, preferably one for a named type. Returns the entitlement."""
    named = [(cluster.types[kind], kind) for kind in kinds if cluster.types[kind] is not None]
    for key, entitled in [*named, (None, ENTITLED_ANYWHERE)]:
        if key in quota and used.get(key, 0.0) + size <= quota[key]:
            used[key] = used.get(key, 0.0) + size
            return entitled
    return NOT_ENTITLED


def _exceeded(limit: Quota, used: _Used, kind: str | None, size: float) -> set[str | None]:
    """Return the limits, by their accelerator type, that a job on nodes of a type would exceed."""
    return {key for key, most in limit if key in (None, kind) and used.get(key, 0.0) + size > most}


def check_within_limit(gang: Gang, tenant: Tenant) -> None:
    """Refuse a gang that can never start within its tenant's limit.

    Raises:
        CapacityError: with the limit, and the largest gang that would start.
    """
    for kind, most in tenant.limit:
        concerns = gang.gpus_per_worker and kind in (None, gang.accelerator_type)  # without a type, it may go elsewhere
        if not concerns or gang.num_workers * gang.gpus_per_worker <= most:
            continue
        of_kind = f"{kind} GPUs" if kind is not None else "GPUs"
        largest = most // gang.gpus_per_worker
        advice = f"the most that would start is resources.num_workers: {largest}" if largest else "not one worker fits"
        raise CapacityError(
            f"the spec asks for {gang}, but tenant {tenant.name!r} may hold at most {most} {of_kind} at once; {advice}"
        )
