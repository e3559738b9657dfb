"""A snapshot: jobs, machines, tenants and the time, built from rows of a store. A plan reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory
from cluster.capacity.occupancy import Occupancy
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import COLUMNS, HELD, RUNNING, WAITING, Floats, JobTable

# The fields of a row, in this order. Times are seconds of the store's clock; None: unknown or not set.
ROW = (
    "job_id",
    "tenant",
    "priority",
    "num_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "accelerator_type",
    "state",  # as in `job_table`
    "submitted_s",
    "waiting_since_s",
    "waited_s",
    "not_before_s",
    "started_s",
    "attained_s",
    "remaining_s",
    "most_left_s",
    "preemptible",
    "interruptions",
    "interruption_cost_s",
    "placement",  # of a running job: (node id, workers) for each node
    "after",  # ids of jobs that must end first
    "sizes",  # numbers of workers that the job can have, ascending; None: it is not elastic
)
_GANG = ("num_workers", "cpus_per_worker", "gpus_per_worker", "accelerator_type")
_NUMBERS = tuple(name for name in ROW if name in COLUMNS and name != "tenant")


@dataclass(frozen=True)
class Snapshot:
    """The queue and the cluster at one moment.

    Attributes:
        now_s: the time, on the clock of all times in `jobs`.
        used_s: [tenants]; decayed GPU-seconds that each has used (`Policy.share_half_life_s`).
        parents: rows of the jobs that must end first, for each HELD job that waits for others.
        sizes: numbers of workers that each elastic job can have, ascending. In `jobs`, a waiting job has the fewest, a
            running one those that it runs with.
        grows: whether running jobs may grow. False while jobs that do not wait yet are about to.
    """

    now_s: float
    jobs: JobTable
    cluster: Occupancy
    tenants: tuple[Tenant, ...]
    used_s: Floats
    parents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    grows: bool = True

    @cached_property
    def weights(self) -> Floats:
        """[tenants]; weight of each."""
        return np.array([tenant.weight for tenant in self.tenants], float)

    @cached_property
    def waiting(self) -> NDArray[np.bool_]:
        """[rows]; jobs that could start if they fitted."""
        return np.equal(self.jobs.state, WAITING) & (self.jobs.not_before_s <= self.now_s)

    @cached_property
    def running(self) -> NDArray[np.bool_]:
        """[rows]; jobs that run."""
        return np.equal(self.jobs.state, RUNNING)

    @cached_property
    def left_s(self) -> Floats:
        """[rows]; upper bound of each job's remaining time: as measured and at most as declared; inf: neither is."""
        return np.fmin(self.jobs.remaining_s, self.jobs.most_left_s)

    @cached_property
    def ends_s(self) -> Floats:
        """[rows]; when each running job is expected to end; inf: unknown."""
        return np.where(self.running, self.now_s + self.left_s, np.inf)

    @cached_property
    def kinds(self) -> NDArray[np.int32]:
        """[rows]; the kind of the nodes that each job is on; -1: on none."""
        kinds = np.full(self.jobs.rows, -1, np.int32)
        for row, placement in self.cluster.without_slots.items():
            kinds[row] = self.cluster.kinds[placement[0][0]]
        nodes, places = (self.cluster.slots >= 0).nonzero()
        kinds[self.cluster.slots[nodes, places]] = self.cluster.kinds[nodes]
        return kinds


def snapshot_of(
    rows: Sequence[Sequence[Any]],
    inventory: Inventory,
    tenants: Sequence[Tenant],
    used_s: Mapping[str, float],
    now_s: float,
) -> Snapshot:
    """Build a snapshot. Row *n* of its table is the *n*-th of `rows`.

    Args:
        rows: jobs that have not ended, with the fields of ROW.
        used_s: decayed GPU-seconds by tenant.

    Raises:
        KeyError: a row names a tenant or a node that is not given.
    """
    number = {tenant.name: index for index, tenant in enumerate(tenants)}
    node_of = {node.node_id: index for index, node in enumerate(inventory.nodes)}
    jobs = JobTable()
    column = dict(zip(ROW, zip(*rows, strict=True) if rows else [()] * len(ROW), strict=True))
    codes = _codes(jobs, [column[name] for name in _GANG])
    jobs.fill(
        {name: _numbers(column[name], COLUMNS[name]) for name in _NUMBERS}
        | {"tenant": np.array([number[name] for name in column["tenant"]], np.int32)}
        | {"gang": codes, "size": jobs.sizes()[codes]}
    )
    np.maximum(jobs.waiting_since_s, jobs.not_before_s, out=jobs.waiting_since_s)
    parents = _parents(column["job_id"], column["after"])
    jobs.state[[row for row in parents if jobs.state[row] == WAITING]] = HELD
    held = [
        (row, jobs.gang_of(row), tuple((node_of[node], workers) for node, workers in column["placement"][row]))
        for row in (jobs.state == RUNNING).nonzero()[0].tolist()
    ]
    used = np.array([used_s.get(tenant.name, 0.0) for tenant in tenants])
    sizes = {row: tuple(given) for row, given in enumerate(column["sizes"]) if given and len(given) > 1}
    return Snapshot(now_s, jobs, Occupancy.of(inventory, held), tuple(tenants), used, parents, sizes)


def _numbers(values: Sequence[float | None], nothing: np.generic) -> Floats:
    """Return values as an array, with `nothing` for None."""
    given = np.array(values, float)
    return np.where(np.isnan(given), nothing, given)


def _parents(ids: Sequence[str], after: Sequence[Sequence[str] | None]) -> dict[int, tuple[int, ...]]:
    """Return the parents that have not ended, for each job that waits for some."""
    waits = [row for row, parents in enumerate(after) if parents]
    row_of = {job_id: row for row, job_id in enumerate(ids)} if waits else {}
    found = ((row, tuple(row_of[one] for one in after[row] or () if one in row_of)) for row in waits)
    return {row: parents for row, parents in found if parents}


def _codes(jobs: JobTable, columns: Sequence[Sequence[Any]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    shapes = list(zip(*columns, strict=True))
    codes = {shape: jobs.code(Gang(*shape)) for shape in dict.fromkeys(shapes)}
    return np.array([codes[shape] for shape in shapes], np.int32)
