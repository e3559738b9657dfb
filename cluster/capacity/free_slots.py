"""The free slots of a cluster, and where gangs are placed on them, one after the other.

If all workers of a gang fit on one node, the fitting node with the fewest free slots takes them, so that whole nodes
stay free. A larger gang takes wholly free nodes of one accelerator type, and for its last workers a node that it may
share.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy, Placement

_Zone = tuple[int, bool]  # kind, whether reserved
_Level = tuple[int, bool]  # (free slots, wholly free): among equally many free slots, nodes in use come first


@dataclass(frozen=True)
class Terms:
    """Conditions of a placement, in addition to the number of workers.

    Attributes:
        yields: whether the gang will have left the reserved nodes before they are needed.
        kinds: kinds of nodes that it may be placed on; None: all.
    """

    yields: bool = False
    kinds: frozenset[int] | None = None


UNKNOWN_END = Terms()  # any kind of node, but no node that is reserved


class FreeSlots:
    """The free slots of the usable nodes of an occupancy. It lives for one plan, and does not change the occupancy."""

    def __init__(self, occupancy: Occupancy) -> None:
        self._of = occupancy
        now_free = occupancy.free * occupancy.usable
        self.free: list[int] = now_free.tolist()
        self._cpus: list[int] = occupancy.cpus_free.tolist()
        self._sizes, self._kinds, self._gpu = occupancy.lists
        self._reserved = frozenset[int]()
        self.total = int(now_free.sum())
        # Number of nodes, by free slots.
        self._with_free: list[int] = np.bincount(now_free, minlength=occupancy.slots.shape[1] + 1).tolist()
        self._highest = int(now_free.max(initial=0))  # no node has more free slots
        # Heaps of nodes. An entry is stale if its node has been pushed to another heap since.
        self._zones: dict[_Zone, dict[_Level, list[int]]] = {}
        self._heap_of: list[list[int] | None] = [None] * len(self.free)
        self._enter_all(now_free.nonzero()[0].tolist())

    def after(self, occupancy: Occupancy) -> FreeSlots:
        """Return the free slots of another occupancy of the same nodes, with the same reserved nodes."""
        other = FreeSlots(occupancy)
        other.reserve(self._reserved)
        return other

    def place(self, gang: Gang, terms: Terms = UNKNOWN_END) -> Placement | None:
        """Place a gang and take its slots; None: it does not fit now."""
        placement = self._find(gang, terms) if gang.gpus_per_worker else self._find_by_cpus(gang, terms)
        if placement is not None:
            self.take(gang, placement)
        return placement

    def take(self, gang: Gang, placement: Placement) -> None:
        for node, workers in placement:
            self._change(node, gang, -workers)

    def give(self, gang: Gang, placement: Placement) -> None:
        """Free the slots of a gang that is stopped. Nodes that are not usable stay without free slots."""
        for node, workers in placement:
            self._change(node, gang, workers)

    def reserve(self, nodes: Iterable[int]) -> None:
        """Reserve nodes for a job that starts later. Until then only gangs that yield may use them."""
        self._reserved = frozenset(nodes)
        for node in self._reserved:
            if self.free[node]:
                self._enter(node)

    def closed_to(self, terms: Terms) -> NDArray[np.bool_] | None:
        """[nodes]; True: a gang with these terms may not be placed there. None: it may be placed everywhere."""
        closed = None
        if self._reserved and not terms.yields:
            closed = np.zeros(len(self.free), bool)
            closed[list(self._reserved)] = True
        if terms.kinds is not None and len(terms.kinds) < len(self._of.types):
            other = np.ones(len(self._of.types), bool)
            other[list(terms.kinds)] = False
            others = other[self._of.kinds]
            closed = others if closed is None else closed | others
        return closed

    def _change(self, node: int, gang: Gang, workers: int) -> None:
        self._cpus[node] += workers * gang.cpus_per_worker
        slots = self._of.slots_for(gang, node, workers)
        if slots and self._of.usable[node]:
            self._with_free[self.free[node]] -= 1
            self.free[node] += slots
            self._with_free[self.free[node]] += 1
            self._highest = max(self._highest, self.free[node])
            self.total += slots
            self._heap_of[node] = None
            if self.free[node]:
                self._enter(node)

    def _enter_all(self, nodes: Iterable[int]) -> None:
        """Do what `_enter` does for nodes in ascending order, none of which is on a heap."""
        free, sizes, kinds, zones, heap_of = self.free, self._sizes, self._kinds, self._zones, self._heap_of
        heaps: dict[tuple[int, int, bool], list[int]] = {}
        for node in nodes:
            key = kinds[node], free[node], free[node] == sizes[node]
            heap = heaps.get(key)
            if heap is None:
                heap = heaps[key] = zones.setdefault((key[0], False), {}).setdefault(key[1:], [])
            heap.append(node)  # in ascending order, a list is a heap
            heap_of[node] = heap

    def _enter(self, node: int) -> None:
        levels = self._zones.setdefault((self._kinds[node], node in self._reserved), {})
        free = self.free[node]
        heap = self._heap_of[node] = levels.setdefault((free, free == self._sizes[node]), [])
        heapq.heappush(heap, node)

    def _find(self, gang: Gang, terms: Terms) -> Placement | None:
        slots = gang.num_workers * gang.gpus_per_worker
        fits_every = self._of.fits_every_node(gang)
        if slots > (self._most_on_one() if fits_every else self.total):
            return None
        zones = self._zones_for(gang, terms)
        node = self._best_node(zones, gang, gang.num_workers)
        if node is not None:
            return ((node, gang.num_workers),)
        if fits_every:
            return None
        by_kind: dict[int, list[_Zone]] = {}
        for zone in zones:
            by_kind.setdefault(zone[0], []).append(zone)
        spanning = (self._whole_nodes(by_kind[kind], gang) for kind in by_kind if self._of.spans_nodes(gang, kind))
        return next((placement for placement in spanning if placement is not None), None)

    def _most_on_one(self) -> int:
        """Return the number of free slots on the node that has most."""
        while self._highest and not self._with_free[self._highest]:
            self._highest -= 1
        return self._highest

    def _zones_for(self, gang: Gang, terms: Terms) -> list[_Zone]:
        """Return the zones that the gang may use, the reserved ones first, because few gangs can use them."""
        fits = self._of.kinds_for(gang)
        found = [
            (kind, reserved)
            for kind, reserved in self._zones
            if kind in fits and (terms.yields or not reserved) and (terms.kinds is None or kind in terms.kinds)
        ]
        return sorted(found, key=lambda zone: (not zone[1], zone[0])) if len(found) > 1 else found

    def _best_node(self, zones: Sequence[_Zone], gang: Gang, workers: int, avoid: Sequence[int] = ()) -> int | None:
        """Return the node with the fewest free slots that holds the workers.

        Of nodes with equally many free slots, one that is in use is preferred, then the one with the lowest number.
        """
        slots, cpus = workers * gang.gpus_per_worker, workers * gang.cpus_per_worker
        best: tuple[_Level, int] | None = None
        for zone in zones:
            levels = self._zones[zone]
            for level in sorted(level for level in levels if level[0] >= slots):
                if best is not None and level > best[0]:
                    break
                node = self._lowest(levels, level, cpus, avoid)
                if node is not None:
                    best = min(best, (level, node)) if best is not None else (level, node)
                    break
        return best[1] if best is not None else None

    def _lowest(self, levels: dict[_Level, list[int]], level: _Level, cpus: int, avoid: Sequence[int]) -> int | None:
        """Return the lowest node of a level that has the CPUs."""
        heap, passed, found = levels[level], list[int](), None
        while heap and found is None:
            if self._heap_of[heap[0]] is not heap:
                heapq.heappop(heap)
            elif self._cpus[heap[0]] >= cpus and heap[0] not in avoid:
                found = heap[0]
            else:
                passed.append(heapq.heappop(heap))
        for node in passed:
            heapq.heappush(heap, node)
        if not heap:
            del levels[level]
        return found

    def _whole_nodes(self, zones: Sequence[_Zone], gang: Gang) -> Placement | None:
        """Place a gang on wholly free nodes, the largest first, and its last workers on a node that may be shared."""
        chosen: list[tuple[int, int]] = []
        left = gang.num_workers
        levels = sorted(
            (-level[0], not zone[1], level, zone) for zone in zones for level in self._zones[zone] if level[1]
        )
        for node in (node for *_, level, zone in levels for node in self._nodes(zone, level)):
            each = min(self._sizes[node] // gang.gpus_per_worker, self._fits_cpus(gang, node))
            if each > left:
                break
            if each:
                chosen.append((node, each))
                left -= each
            if left == 0:
                return tuple(chosen)
        last = self._best_node(zones, gang, left, [node for node, _ in chosen])
        return (*chosen, (last, left)) if chosen and last is not None else None

    def _find_by_cpus(self, gang: Gang, terms: Terms) -> Placement | None:
        """Place a gang that needs no GPU.

        One node takes all workers, preferably one without GPUs. Otherwise, wholly free nodes without GPUs do, and for
        the last workers a node without GPUs that may be shared.
        """
        need = gang.num_workers * gang.cpus_per_worker
        closed = self.closed_to(terms)
        usable = self._of.usable if closed is None else self._of.usable & ~closed
        open_nodes = [node for node in usable.nonzero()[0].tolist() if self._kinds[node] in self._of.kinds_for(gang)]
        fits = [
            (self._gpu[node], self._cpus[node], node)
            for node in open_nodes
            if self._cpus[node] >= need and (self._gpu[node] or self.free[node] >= need)
        ]
        if fits:
            return ((min(fits)[2], gang.num_workers),)
        chosen: list[tuple[int, int]] = []
        left = gang.num_workers
        for node in sorted(open_nodes, key=lambda node: (-self._sizes[node], node)):
            whole = self.free[node] == self._sizes[node] and not self._gpu[node] and self.free[node]
            workers = self._fits_cpus(gang, node) if whole else 0
            if 0 < workers <= left:
                chosen.append((node, workers))
                left -= workers
            if not left:
                return tuple(chosen)
        taken = {node for node, _ in chosen}
        rest = [
            (self.free[node], node)
            for node in open_nodes
            if node not in taken and not self._gpu[node] and self.free[node] >= left * gang.cpus_per_worker
        ]
        return (*chosen, (min(rest)[1], left)) if chosen and rest else None

    def _fits_cpus(self, gang: Gang, node: int) -> int:
        return self._cpus[node] // gang.cpus_per_worker if gang.cpus_per_worker else gang.num_workers

    def _nodes(self, zone: _Zone, level: _Level) -> Iterator[int]:
        """Yield the nodes at a level, the lowest first.

        When the generator is closed, the nodes that it took are pushed back on the heap; stale entries are dropped.
        """
        heap = self._zones[zone][level]
        seen: list[int] = []
        try:
            while heap:
                node = heapq.heappop(heap)
                if self._heap_of[node] is heap and (not seen or seen[-1] != node):
                    seen.append(node)
                    yield node
        finally:
            for node in seen:
                heapq.heappush(heap, node)
