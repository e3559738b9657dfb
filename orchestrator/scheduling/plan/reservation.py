"""Reservations: when and where a gang that does not fit now will start. Others may use these nodes until then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import FOREIGN, Occupancy
from orchestrator.scheduling.job_table import Floats, JobTable, Rows
from orchestrator.scheduling.plan.decisions import Reservation

_ROUNDING = 1e-6  # fractions of CPUs are added up
_Option = tuple[float, int, tuple[int, ...]]  # (when, number of unknown ends that it waits for, nodes)


def reserve(
    row: int, jobs: JobTable, cluster: Occupancy, released_s: Floats, now_s: float, open_nodes: NDArray[np.bool_]
) -> Reservation | None:
    """Find the nodes on which a gang can start earliest, by the known ends of the jobs that hold them.

    If ends are unknown, take the nodes with the fewest such jobs and reserve them from now on: no job without a known
    end must be placed there. None: no nodes could hold the gang, or it would have to wait for slots or CPUs that are
    held outside Fleetune. These may never become free, and the reservation would only keep slots empty.

    A gang that needs no GPU gets nodes with GPUs only if no others could hold it.

    Args:
        row: the job that waits.
        released_s: [rows]; when each running job frees its slots; inf: unknown.
        open_nodes: [nodes]; True: the gang may be placed there.
    """
    gang = jobs.gang_of(row)
    found: list[_Option] = []
    for with_gpus in (True,) if gang.gpus_per_worker else (False, True):
        of_class = open_nodes & (cluster.has_gpus == with_gpus)
        for kind in sorted(cluster.kinds_for(gang)) if not found else ():
            nodes = (of_class & (cluster.kinds == kind)).nonzero()[0]
            search = _Search(gang, jobs, cluster, released_s, now_s, nodes, with_gpus == (gang.gpus_per_worker > 0))
            spans = search.takes_slots and cluster.spans_nodes(gang, kind)
            option = search.whole_nodes() if spans else search.one_node()
            found += [option] if option is not None else []
    if not found:
        return None
    at_s, _, where = min(found)
    return Reservation(row, where, max(at_s, now_s) if math.isfinite(at_s) else now_s)


def _cpus_of_slot(gang: Gang) -> float:
    return gang.cpus_per_worker / (gang.gpus_per_worker or gang.cpus_per_worker)


@dataclass(frozen=True)
class _Search:
    """The search for one gang among nodes of one kind.

    Attributes:
        nodes: those that it may be placed on.
        takes_slots: whether it takes slots there: a gang that needs no GPU takes none on nodes with GPUs.
    """

    gang: Gang
    jobs: JobTable
    cluster: Occupancy
    released_s: Floats
    now_s: float
    nodes: Rows
    takes_slots: bool

    def one_node(self) -> _Option | None:
        """Return the earliest node that holds the whole gang; None: there is no node."""
        gang, cluster = self.gang, self.cluster
        need_cpus = gang.num_workers * gang.cpus_per_worker
        could = cluster.cpus[self.nodes] - cluster.foreign_cpus[self.nodes] >= need_cpus
        size = gang.num_workers * (gang.gpus_per_worker or gang.cpus_per_worker)
        if self.takes_slots:
            foreign = (cluster.slots[self.nodes] == FOREIGN).sum(axis=1)
            could &= cluster.sizes[self.nodes] - foreign >= size
        nodes = self.nodes[could]
        if not len(nodes):
            return None
        at_s, unknown = np.full(len(nodes), self.now_s), np.zeros(len(nodes), np.intp)
        lacks_cpus = cluster.cpus_free[nodes] < need_cpus
        if self.takes_slots:
            by_time, cpus = self._by_time(nodes)
            at_s, unknown = by_time[:, size - 1], np.isinf(by_time[:, :size]).sum(axis=1)
            lacks_cpus = cpus[:, size - 1] < need_cpus
        self._wait_for_cpus(nodes, lacks_cpus, np.full(len(nodes), need_cpus), at_s, unknown)
        best = np.lexsort((nodes, unknown, at_s))[0]
        return float(at_s[best]), int(unknown[best]), (int(nodes[best]),)

    def whole_nodes(self) -> _Option | None:
        """Return the earliest wholly free nodes; None: there are too few."""
        gang, cluster = self.gang, self.cluster
        per_worker = gang.gpus_per_worker or gang.cpus_per_worker
        most = np.minimum(
            cluster.sizes // per_worker, (cluster.cpus - cluster.foreign_cpus) // max(gang.cpus_per_worker, 1)
        )
        nodes = self.nodes[(most[self.nodes] > 0) & ~(cluster.slots[self.nodes] == FOREIGN).any(axis=1)]
        sizes, (by_time, cpus) = cluster.sizes[nodes], self._by_time(nodes)
        last = np.arange(len(nodes)), sizes - 1
        absent = by_time.shape[1] - sizes  # absent slots come last in each line and are inf too
        whole_s, unknown = by_time[last], np.isinf(by_time).sum(axis=1) - absent
        need_cpus = most[nodes] * gang.cpus_per_worker
        self._wait_for_cpus(nodes, cpus[last] < need_cpus, need_cpus, whole_s, unknown)
        order = np.lexsort((nodes, unknown, whole_s))
        workers = most[nodes[order]].cumsum()
        if not len(workers) or workers[-1] < gang.num_workers:
            return None
        chosen = order[: int(np.searchsorted(workers, gang.num_workers)) + 1]
        return float(whole_s[chosen].max()), int(unknown[chosen].sum()), tuple(nodes[chosen].tolist())

    def _by_time(self, nodes: Rows) -> tuple[Floats, Floats]:
        """Return [nodes, slots] twice: when each slot is free, the earliest first, and the CPUs that are free then.

        Times are inf if the end is unknown, or if there is no such slot. CPUs are inf if there are always enough. Jobs
        that hold no slot are not counted among those that end.
        """
        jobs, lines = self.jobs, self.cluster.slots[nodes]
        when_s = np.concatenate((self.released_s, (math.inf, math.inf, self.now_s)))[lines]  # FOREIGN, ABSENT, FREE
        each = np.array([_cpus_of_slot(gang) for gang in jobs.gangs])
        mine, cpus_free = _cpus_of_slot(self.gang), self.cluster.cpus_free[nodes]
        if (each >= mine).all() and (cpus_free >= mine * self.cluster.free[nodes]).all():
            when_s.sort(axis=1)
            return when_s, np.full(when_s.shape, math.inf)
        order = when_s.argsort(axis=1, kind="stable")
        cpus = np.concatenate((each[jobs.gang], (0.0, 0.0, 0.0)))[lines]
        freed = np.take_along_axis(cpus, order, axis=1).cumsum(axis=1) + _ROUNDING
        return np.take_along_axis(when_s, order, axis=1), cpus_free[:, None] + freed

    def _wait_for_cpus(
        self, nodes: Rows, lack: NDArray[np.bool_], need: NDArray[np.int64], at_s: Floats, unknown: NDArray[np.intp]
    ) -> None:
        """Put off the times of nodes that lack CPUs, and raise the number of unknown ends that each waits for."""
        for at in lack.nonzero()[0].tolist():
            left, unknown_ends = int(need[at] - self.cluster.cpus_free[nodes[at]]), 0
            for when_s, cpus in sorted(self._held_cpus(int(nodes[at])), key=lambda one: (one[0], -one[1])):
                if left <= 0:
                    break
                at_s[at], left = max(float(at_s[at]), when_s), left - cpus
                unknown_ends += math.isinf(when_s)
            unknown[at] = max(int(unknown[at]), unknown_ends)

    def _held_cpus(self, node: int) -> list[tuple[float, int]]:
        """Return (when it ends, CPUs that it holds there) of each job on a node with GPUs."""
        jobs, line = self.jobs, self.cluster.slots[node]
        rows, counts = np.unique(line[line >= 0], return_counts=True)
        slots = zip(rows.tolist(), counts.tolist(), strict=True)
        held = [(row, count // jobs.gang_of(row).gpus_per_worker) for row, count in slots]
        for row, placement in self.cluster.without_slots.items():
            held += [(row, workers) for at, workers in placement if at == node]
        return [(float(self.released_s[row]), workers * jobs.gang_of(row).cpus_per_worker) for row, workers in held]
