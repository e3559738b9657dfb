"""From rows of a store to a snapshot, many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.inventory import Inventory
from cluster.occupancy import Occupancy
from cluster.resources import Gang
from orchestrator.scheduling.snapshot import Snapshot, Tenant, Window
from orchestrator.scheduling.table import RUNNING, JobTable, slots_of

# What a row has, in this order. Times are seconds of the store's clock, None where nobody knows or there is none.
ROW = (
    "job_id",
    "tenant",
    "priority",
    "num_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "accelerator_type",
    "state",  # a State
    "submitted_s",
    "waiting_since_s",
    "waited_s",
    "started_s",
    "attained_s",
    "remaining_s",
    "most_left_s",
    "preemptible",
    "interruptions",
    "interruption_cost_s",
    "placement",  # of a running job: ((node id, workers), ...)
)
_GANG = slice(3, 7)
_AS_THEY_ARE = (2, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17)


def snapshot_of(
    rows: Sequence[Sequence[Any]],
    inventory: Inventory,
    tenants: Sequence[Tenant],
    used_s: Mapping[str, float],
    now_s: float,
    windows: tuple[Window, ...] = (),
) -> Snapshot:
    """Row *n* of the snapshot's table is the *n*-th of `rows`.

    Args:
        rows: of jobs that have not ended, as ROW has them.
        used_s: decayed GPU-seconds by tenant.

    Raises:
        KeyError: a row names a tenant or a node that is not given.
    """
    number = {tenant.name: index for index, tenant in enumerate(tenants)}
    node_of = {node.node_id: index for index, node in enumerate(inventory.nodes)}
    jobs = JobTable()
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(ROW)
    codes = _codes(jobs, columns[_GANG])
    most = np.array(columns[14], float)
    most[np.isnan(most)] = np.inf
    jobs.fill(
        {ROW[index]: np.array(columns[index], float) for index in _AS_THEY_ARE}
        | {"tenant": np.array([number[name] for name in columns[1]], np.int32), "most_left_s": most}
        | {"gang": codes, "size": _sizes(jobs)[codes] if len(codes) else np.zeros(0)}
    )
    held = [
        (row, jobs.gang_of(row), tuple((node_of[node], workers) for node, workers in columns[18][row]))
        for row in (jobs.state == RUNNING).nonzero()[0].tolist()
    ]
    used = np.array([used_s.get(tenant.name, 0.0) for tenant in tenants])
    return Snapshot(now_s, jobs, Occupancy.of(inventory, held), tuple(tenants), used, windows)


def _codes(jobs: JobTable, columns: Sequence[Sequence[Any]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    codes: dict[tuple[Any, ...], int] = {}
    numbered = [codes.setdefault(shape, len(codes)) for shape in zip(*columns, strict=True)]
    for shape in codes:
        jobs.code(Gang(*shape))
    return np.array(numbered, np.int32)


def _sizes(jobs: JobTable) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([slots_of(gang) for gang in jobs.gangs], float)
