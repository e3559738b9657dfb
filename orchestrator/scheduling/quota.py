"""What a tenant is guaranteed, and what it may hold at most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cluster.occupancy import Occupancy
from cluster.resources import Gang
from orchestrator.scheduling.snapshot import Quota, Snapshot
from orchestrator.scheduling.table import Floats, JobTable

_Used = dict[str | None, float]  # accelerator type -> GPUs; None: of all types


def entitled_rows(snapshot: Snapshot, index: Floats, level: NDArray[np.int32]) -> NDArray[np.bool_] | None:
    """[rows]; jobs within their tenant's guarantee: first what runs, then what waits, each by standing."""
    guaranteed = [number for number, tenant in enumerate(snapshot.tenants) if tenant.guaranteed]
    if not guaranteed:
        return None
    jobs = snapshot.jobs
    kinds = kinds_of_rows(jobs, snapshot.cluster)
    entitled = np.zeros(jobs.rows, bool)
    active = np.flatnonzero((snapshot.running | snapshot.waiting) & np.isin(jobs.tenant, guaranteed))
    order = active[np.lexsort((jobs.submitted_s[active], index[active], -level[active], ~snapshot.running[active]))]
    used: dict[int, _Used] = {tenant: {} for tenant in guaranteed}
    for row in order.tolist():
        tenant = int(jobs.tenant[row])
        types = _types_of(jobs.gang_of(row), kinds[row], snapshot.cluster)
        entitled[row] = _fits_one(snapshot.tenants[tenant].guaranteed, used[tenant], types, float(jobs.size[row]))
    return entitled


class Limits:
    """What each tenant may still take, while a plan is made."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._cluster = snapshot.cluster
        self._limits = {number: tenant.limit for number, tenant in enumerate(snapshot.tenants) if tenant.limit}
        self._used: dict[int, _Used] = {number: {} for number in self._limits}
        if self._limits:
            kinds = kinds_of_rows(snapshot.jobs, snapshot.cluster)
            for row in np.flatnonzero(snapshot.running).tolist():
                self.take(snapshot.jobs, row, int(kinds[row]))

    @property
    def tenants(self) -> frozenset[int]:
        return frozenset(self._limits)

    def gangs(self, jobs: JobTable, row: int) -> list[Gang]:
        """The gang in the forms that its tenant's limit allows: itself, of certain types only, or none."""
        gang, tenant = jobs.gang_of(row), int(jobs.tenant[row])
        limit = self._limits.get(tenant)
        if limit is None:
            return [gang]
        used, size = self._used[tenant], float(jobs.size[row])
        if gang.gpus_per_worker == 0:
            return [gang]
        types = self._cluster.types if gang.accelerator_type is None else (gang.accelerator_type,)
        allowed = [kind for kind in types if _within(limit, used, kind, size)]
        if len(allowed) == len(types):
            return [gang]
        return [
            Gang(gang.num_workers, gang.cpus_per_worker, gang.gpus_per_worker, kind)
            for kind in allowed
            if kind is not None
        ]

    def take(self, jobs: JobTable, row: int, kind: int, sign: int = 1) -> None:
        """Count a job that is put on nodes of a kind; with sign -1 one that is stopped there."""
        tenant = int(jobs.tenant[row])
        if tenant in self._limits and jobs.gang_of(row).gpus_per_worker:
            used = self._used[tenant]
            for key in {None, self._cluster.types[kind]}:
                used[key] = used.get(key, 0.0) + sign * float(jobs.size[row])


def kinds_of_rows(jobs: JobTable, cluster: Occupancy) -> NDArray[np.int32]:
    """[rows]; the kind of the nodes that each job is on; -1 where it is on none."""
    kinds = np.full(jobs.rows, -1, np.int32)
    nodes, places = np.nonzero(cluster.slots >= 0)
    kinds[cluster.slots[nodes, places]] = cluster.kinds[nodes]
    return kinds


def _types_of(gang: Gang, kind: int, cluster: Occupancy) -> tuple[str | None, ...]:
    """The types that a job is on, or may be put on."""
    if gang.gpus_per_worker == 0:
        return ()
    if kind >= 0:
        return (cluster.types[kind],)
    return (gang.accelerator_type,) if gang.accelerator_type is not None else cluster.types


def _fits_one(guaranteed: Quota, used: _Used, types: tuple[str | None, ...], size: float) -> bool:
    """Whether one of the types has room within the guarantee, and if so, take it."""
    quota = dict(guaranteed)
    for key in [*(kind for kind in types if kind is not None), *([None] if types else [])]:
        if key in quota and used.get(key, 0.0) + size <= quota[key]:
            used[key] = used.get(key, 0.0) + size
            return True
    return False


def _within(limit: Quota, used: _Used, kind: str | None, size: float) -> bool:
    return all(used.get(key, 0.0) + size <= most for key, most in limit if key is None or key == kind)
