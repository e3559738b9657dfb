"""When and where a gang that does not fit now will: the nodes that others may use only until then."""

from __future__ import annotations

import math

import numpy as np

from cluster.occupancy import Occupancy
from cluster.resources import Gang
from orchestrator.scheduling.decisions import Reservation
from orchestrator.scheduling.table import Floats


def reserve(row: int, gang: Gang, cluster: Occupancy, released_s: Floats, now_s: float) -> Reservation | None:
    """The earliest nodes for a gang, as far as anybody knows when those who hold them end.

    Where nobody knows, these are the nodes with the fewest such jobs, from now on: what has no known end must not be
    put there. None where no nodes could ever hold it.

    Args:
        released_s: [rows]; when each running job gives its slots back; inf where nobody knows.
    """
    times = np.concatenate([released_s, [math.inf, math.inf, now_s]])[cluster.slots]  # FOREIGN, ABSENT, FREE
    fits = cluster.fits(gang)
    per_worker = gang.gpus_per_worker or gang.cpus_per_worker
    size = gang.num_workers * per_worker
    by_time = np.sort(times, axis=1)
    one = (fits & (cluster.sizes >= size)).nonzero()[0]
    if len(one):
        at = by_time[one, size - 1]
        unknown = np.isinf(by_time[one, :size]).sum(axis=1)
        best = np.lexsort((one, unknown, at))[0]
        return Reservation(row, (int(one[best]),), _when(float(at[best]), now_s))
    return _whole_nodes(row, gang, cluster, by_time, fits, per_worker, now_s)


def _whole_nodes(
    row: int, gang: Gang, cluster: Occupancy, by_time: Floats, fits: np.ndarray, per_worker: int, now_s: float
) -> Reservation | None:
    rows = (fits & (cluster.sizes >= per_worker)).nonzero()[0]
    whole = by_time[rows, cluster.sizes[rows] - 1]
    unknown = np.array([np.isinf(by_time[node, : cluster.sizes[node]]).sum() for node in rows])
    found = []
    for kind in np.unique(cluster.kinds[rows]).tolist():
        mine = cluster.kinds[rows] == kind
        order = rows[mine][np.lexsort((rows[mine], unknown[mine], whole[mine]))]
        workers = np.cumsum(cluster.sizes[order] // per_worker)
        if len(workers) and workers[-1] >= gang.num_workers:
            nodes = order[: int(np.searchsorted(workers, gang.num_workers)) + 1]
            at = max(float(by_time[node, cluster.sizes[node] - 1]) for node in nodes)
            found.append((at, kind, tuple(nodes.tolist())))
    if not found:
        return None
    at, _, nodes = min(found)
    return Reservation(row, nodes, _when(at, now_s))


def _when(at_s: float, now_s: float) -> float:
    return max(at_s, now_s) if math.isfinite(at_s) else now_s
