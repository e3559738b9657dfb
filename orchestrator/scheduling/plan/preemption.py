"""Preemption: the cheapest set of jobs whose interruption makes room for a gang.

The cost is counted for each slot. Jobs that take only CPUs of nodes with GPUs hold no slot there, so theirs is counted
for each CPU. If the slots of a node are sorted by the cost of freeing each, the sum of the first n is a lower bound for
freeing n slots there; this is computed for all nodes at once. The few cheapest nodes are then searched job by job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.free_slots import FreeSlots
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy, Placement, placement_of
from orchestrator.scheduling.job_table import Floats, JobTable, Rows
from orchestrator.scheduling.plan.victims import Victims

_LOOKED_AT = 4  # number of nodes that are searched job by job
# Whether slots marked FOREIGN, ABSENT or FREE are open; these marks index from the end.
_NOBODY_YIELDS = np.array([False, False, True])


@dataclass(frozen=True)
class Preemption:
    """Jobs to interrupt, and the placement of the gang after that."""

    victims: tuple[int, ...]
    placement: Placement


def preemption_for(
    row: int, gang: Gang, jobs: JobTable, cluster: Occupancy, victims: Victims, closed: NDArray[np.bool_] | None = None
) -> Preemption | None:
    """Return the cheapest preemption for a waiting job; None: none is worth its cost.

    Args:
        closed: [nodes]; True: the gang may not be placed there.
    """
    if victims.nobody_yields_to(row):
        return None
    open_nodes = cluster.usable if closed is None else cluster.usable & ~closed
    search = _Search(gang, jobs, cluster, victims, victims.open_to(row), open_nodes)
    found = [search.by_slots(float(jobs.size[row])), None if gang.gpus_per_worker else search.by_cpus()]
    best = min((one for one in found if one is not None), key=lambda one: search.cost(one.victims), default=None)
    return None if best is None else search.without_needless(best)


class _Search:
    """The search for one gang.

    Args:
        open_jobs: [rows]; jobs that may be interrupted.
        open_nodes: [nodes]; nodes on which the gang may be placed.
    """

    def __init__(
        self,
        gang: Gang,
        jobs: JobTable,
        cluster: Occupancy,
        victims: Victims,
        open_jobs: NDArray[np.bool_],
        open_nodes: NDArray[np.bool_],
    ) -> None:
        self._gang, self._jobs, self._cluster, self._victims = gang, jobs, cluster, victims
        self._open_jobs, self._open_nodes = open_jobs, open_nodes
        self._per_worker = gang.gpus_per_worker or gang.cpus_per_worker

    @cached_property
    def _open(self) -> NDArray[np.bool_]:
        """[nodes, slots]; True: free, or held by a job that may be interrupted."""
        fits = self._cluster.fits(self._gang) & self._open_nodes
        return np.concatenate((self._open_jobs, _NOBODY_YIELDS))[self._cluster.slots] & fits[:, None]

    @cached_property
    def _only_cpus(self) -> dict[int, dict[int, int]]:
        """CPUs of jobs that hold no slot there and may be interrupted: by node with GPUs, then by row."""
        found: dict[int, dict[int, int]] = {}
        for row, placement in self._cluster.without_slots.items():
            for node, workers in placement if self._open_jobs[row] else ():
                if self._cluster.has_gpus[node]:
                    found.setdefault(node, {})[row] = workers * self._jobs.gang_of(row).cpus_per_worker
        return found

    def by_slots(self, size: float) -> Preemption | None:
        """Return the cheapest preemption on nodes of the gang's kind. `size`: slots of the gang."""
        gang, cluster = self._gang, self._cluster
        if int(cluster.free.sum()) + float(self._jobs.size @ self._open_jobs) < size:
            return None
        if gang.gpus_per_worker and cluster.fits_every_node(gang):
            return self.on_one_node(None)
        found = []
        for kind in sorted(cluster.kinds_for(gang)):
            of_kind = cluster.kinds == kind
            one = self.on_whole_nodes(of_kind) if cluster.spans_nodes(gang, kind) else self.on_one_node(of_kind)
            found += [(self.cost(one.victims), kind, one)] if one is not None else []
        return min(found)[2] if found else None

    def by_cpus(self) -> Preemption | None:
        """Return the cheapest preemption for a gang without GPUs on a node with GPUs, of jobs without GPUs."""
        need, options = self._gang.num_workers * self._gang.cpus_per_worker, []
        for node in sorted(self._only_cpus):
            rows = self._with_cpus(node, (), need) if self._open_nodes[node] else None
            options += [(self.cost(rows), node, rows)] if rows is not None else []
        if not options:
            return None
        _, node, rows = min(options)
        return Preemption(rows, ((node, self._gang.num_workers),))

    def on_one_node(self, among: NDArray[np.bool_] | None) -> Preemption | None:
        workers = self._gang.num_workers
        enough = self._open.sum(axis=1) >= workers * self._per_worker
        nodes = (enough if among is None else enough & among).nonzero()[0]
        found = self._cheapest(nodes, workers, ())
        return None if found is None else Preemption(found[1], ((found[0], workers),))

    def on_whole_nodes(self, among: NDArray[np.bool_]) -> Preemption | None:
        """Choose nodes that can be emptied, large and then cheap ones first, and one node for the remaining workers."""
        cluster, left = self._cluster, self._gang.num_workers
        whole = ((self._open.sum(axis=1) == cluster.sizes) & (cluster.sizes >= self._per_worker) & among).nonzero()[0]
        placement: list[tuple[int, int]] = []
        stopped: dict[int, None] = {}
        for node in whole[np.lexsort((self._cost_of_all_on(whole), -cluster.sizes[whole]))].tolist():
            on_it = dict.fromkeys(row for row in cluster.slots[node].tolist() if row >= 0)
            most = int(cluster.sizes[node]) // self._per_worker
            on_it = dict.fromkeys(self._with_cpus(node, tuple(on_it), most * self._gang.cpus_per_worker) or on_it)
            by_cpus = self._cpus_with(node, tuple(on_it)) // max(self._gang.cpus_per_worker, 1)
            each = min(most, by_cpus)
            if each > left or not left:
                break
            if each:
                placement.append((node, each))
                stopped |= on_it
                left -= each
        if not placement:
            return None
        if left:
            rest = among.copy()
            rest[[node for node, _ in placement]] = False
            found = self._cheapest(rest.nonzero()[0], left, tuple(stopped))
            if found is None:
                return None
            placement.append((found[0], left))
            stopped |= dict.fromkeys(found[1])
        return Preemption(tuple(stopped), tuple(placement))

    def without_needless(self, found: Preemption) -> Preemption:
        """Leave out each job that need not be interrupted, the costly ones first.

        There may be such jobs, because whole nodes are emptied before a node for the last workers is chosen.
        """
        if len(found.victims) < 2:
            return found
        for row in sorted(found.victims, key=lambda row: -self.cost((row,))):
            others = tuple(victim for victim in found.victims if victim != row)
            after = self._cluster.copy()
            np.logical_and(after.usable, self._open_nodes, out=after.usable)
            for victim in others:
                gang = self._jobs.gang_of(victim)
                after.release(victim, gang, placement_of(victim, gang, after))
            placement = FreeSlots(after).place(self._gang)
            if placement is not None:
                found = Preemption(others, placement)
        return found

    def cost(self, rows: Sequence[int]) -> float:
        return sum(float(self._victims.harm_by_slot[row] * self._jobs.size[row]) for row in rows)

    def _cost_of_all_on(self, nodes: Rows) -> Floats:
        """[nodes]; `cost` of all jobs on each node."""
        lines = np.sort(self._cluster.slots[nodes], axis=1)
        again = np.zeros(lines.shape, bool)
        again[:, 1:] = lines[:, 1:] == lines[:, :-1]
        costs = np.append(self._victims.harm_by_slot[: self._jobs.rows] * self._jobs.size, (0.0, 0.0, 0.0))
        cost: Floats = np.where(again, 0.0, costs[lines]).sum(axis=1)
        return cost

    def _cheapest(self, nodes: Rows, workers: int, stopped: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
        """Return (node, victims) for `workers` on one node, given jobs that are stopped in any case; None: no node."""
        if not len(nodes):
            return None
        size = workers * self._per_worker
        harm = self._harm(nodes, stopped)
        harm.sort(axis=1)
        cost = harm[:, :size].sum(axis=1) if harm.shape[1] >= size else np.full(len(nodes), np.inf)
        options = []
        for at in cost.argsort(kind="stable")[:_LOOKED_AT].tolist():
            node = int(nodes[at])
            rows = self._on(node, size, stopped) if cost[at] < np.inf else None
            if rows is not None:
                rows = self._with_cpus(node, (*stopped, *rows), workers * self._gang.cpus_per_worker)
            if rows is not None:
                rows = rows[len(stopped) :]
                options.append((self.cost(rows), self._left_over(node, rows, stopped), node, rows))
        if not options:
            return None
        _, _, node, rows = min(options)
        return node, rows

    def _harm(self, nodes: Rows, stopped: Sequence[int]) -> Floats:
        """[nodes, slots]; cost of freeing each slot; inf: its holder may not be interrupted."""
        harm = self._victims.harm_by_slot
        if stopped:
            harm = harm.copy()
            harm[list(stopped)] = 0.0
        return np.where(self._open[nodes], harm[self._cluster.slots[nodes]], np.inf)

    def _on(self, node: int, size: int, stopped: Sequence[int]) -> tuple[int, ...] | None:
        """Choose jobs on a node whose slots make up `size` together with its free ones; None: there are too few."""
        line = self._cluster.slots[node]
        held = Counter[int](line[self._open[node] & (line >= 0)].tolist())
        return self._chosen(held, size - int(self._cluster.free[node]) - sum(held.pop(row, 0) for row in stopped))

    def _with_cpus(self, node: int, rows: tuple[int, ...], cpus: int) -> tuple[int, ...] | None:
        """Add jobs until so many CPUs of the node are free; None: there are too few.

        Jobs that take only CPUs of the node are tried first. Jobs with GPUs are stopped for a gang with GPUs only.
        """
        need = cpus - self._cpus_with(node, rows)
        held = {row: count for row, count in self._only_cpus.get(node, {}).items() if row not in rows}
        more = self._chosen(held, need)
        if more is None and self._gang.gpus_per_worker:
            more = self._chosen(held | self._cpus_of_slots(node, rows), need)
        return None if more is None else (*rows, *more)

    def _cpus_of_slots(self, node: int, rows: Sequence[int]) -> dict[int, int]:
        """Return the CPUs of each job, except `rows`, that holds slots of the node and may be interrupted."""
        held = Counter[int](row for row in self._cluster.slots[node].tolist() if row >= 0 and self._open_jobs[row])
        gangs = {row: self._jobs.gang_of(row) for row in held if row not in rows}
        return {
            row: held[row] // (gang.gpus_per_worker or gang.cpus_per_worker) * gang.cpus_per_worker
            for row, gang in gangs.items()
        }

    def _chosen(self, held: Mapping[int, int], need: int) -> tuple[int, ...] | None:
        """Choose jobs that hold `need` together; None: there are too few. `held`: by row.

        Jobs that are expected to run longest are chosen first, as long as they do not exceed the need. The last choice
        is the smallest job that is enough.
        """
        chosen: dict[int, int] = {}
        for row in sorted(held, key=self._longest_first):
            if 0 < held[row] <= need:
                chosen[row] = held[row]
                need -= held[row]
        if need > 0:
            enough = [row for row, slots in held.items() if row not in chosen and slots >= need]
            if not enough:
                return None
            last = min(enough, key=lambda row: (held[row], *self._longest_first(row)))
            chosen[last] = held[last]
            need -= held[last]
        for row in list(chosen):  # the last choice may free enough to make earlier ones unnecessary
            if chosen[row] <= -need:
                need += chosen.pop(row)
        return tuple(chosen)

    def _longest_first(self, row: int) -> tuple[float, float, int]:
        return -float(self._victims.worth[row]), float(self._jobs.submitted_s[row]), row

    def _left_over(self, node: int, rows: Sequence[int], stopped: Sequence[int]) -> int:
        gone = {*rows, *stopped}
        return int(self._cluster.free[node]) + sum(row in gone for row in self._cluster.slots[node].tolist())

    def _cpus_with(self, node: int, stopped: Sequence[int]) -> int:
        """Return the free CPUs of a node once these jobs are stopped."""
        free, line = int(self._cluster.cpus_free[node]), self._cluster.slots[node].tolist()
        for row in stopped:
            held = self._jobs.gang_of(row)
            per_worker = held.gpus_per_worker or held.cpus_per_worker
            free += line.count(row) // per_worker * held.cpus_per_worker
            free += self._only_cpus.get(node, {}).get(row, 0)
        return free
