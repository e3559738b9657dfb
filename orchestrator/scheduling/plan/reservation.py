"""Reservations: when and where a gang that does not fit now will start. Others may use these nodes until then."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import FOREIGN, Occupancy
from orchestrator.scheduling.job_table import Floats, Rows
from orchestrator.scheduling.plan.decisions import Reservation


def reserve(
    row: int, gang: Gang, cluster: Occupancy, released_s: Floats, now_s: float, open_nodes: NDArray[np.bool_]
) -> Reservation | None:
    """Find the nodes on which a gang can start earliest, by the known ends of the jobs that hold them.

    If ends are unknown, take the nodes with the fewest such jobs and reserve them from now on: no job without a known
    end must be placed there. None: no nodes could hold the gang, or it would have to wait for slots that are held
    outside Fleetune. These may never become free, and the reservation would only keep slots empty.

    Args:
        released_s: [rows]; when each running job frees its slots; inf: unknown.
        open_nodes: [nodes]; True: the gang may be placed there.
    """
    by_time = np.concatenate((released_s, (math.inf, math.inf, now_s)))[cluster.slots]  # FOREIGN, ABSENT, FREE
    by_time.sort(axis=1)
    per_worker = gang.gpus_per_worker or gang.cpus_per_worker
    foreign = (cluster.slots == FOREIGN).sum(axis=1)
    most = np.minimum(cluster.sizes // per_worker, cluster.cpus // max(gang.cpus_per_worker, 1))
    found = []
    for kind in sorted(cluster.kinds_for(gang)):
        nodes = (open_nodes & (cluster.kinds == kind) & (most > 0)).nonzero()[0]
        if cluster.spans_nodes(gang, kind):
            option = _whole_nodes(nodes[foreign[nodes] == 0], gang, cluster, by_time, most)
        else:
            size = gang.num_workers * per_worker
            could = (most[nodes] >= gang.num_workers) & (cluster.sizes[nodes] - foreign[nodes] >= size)
            option = _one_node(nodes[could], size, by_time)
        found += [option] if option is not None else []
    if not found:
        return None
    at_s, _, where = min(found)
    return Reservation(row, where, max(at_s, now_s) if math.isfinite(at_s) else now_s)


def _one_node(nodes: Rows, size: int, by_time: Floats) -> tuple[float, int, tuple[int, ...]] | None:
    """Return the earliest node: (when, its slots of unknown end, (node,)); None: there is no node."""
    if not len(nodes):
        return None
    at_s = by_time[nodes, size - 1]
    unknown = np.isinf(by_time[nodes, :size]).sum(axis=1)
    best = np.lexsort((nodes, unknown, at_s))[0]
    return float(at_s[best]), int(unknown[best]), (int(nodes[best]),)


def _whole_nodes(
    nodes: Rows, gang: Gang, cluster: Occupancy, by_time: Floats, most: NDArray[np.int32]
) -> tuple[float, int, tuple[int, ...]] | None:
    """Return the earliest wholly free nodes: (when, their slots of unknown end, nodes); None: there are too few."""
    sizes = cluster.sizes[nodes]
    whole_s = by_time[nodes, sizes - 1]
    absent = by_time.shape[1] - sizes  # absent slots come last in each line and are inf too
    unknown = np.isinf(by_time[nodes]).sum(axis=1) - absent
    order = np.lexsort((nodes, unknown, whole_s))
    workers = most[nodes[order]].cumsum()
    if not len(workers) or workers[-1] < gang.num_workers:
        return None
    chosen = order[: int(np.searchsorted(workers, gang.num_workers)) + 1]
    return float(whole_s[chosen].max()), int(unknown[chosen].sum()), tuple(nodes[chosen].tolist())
