"""Where the free slots of a cluster are, for placing many gangs one after the other.

A gang goes on one node where all its workers fit; the node with the fewest slots left over takes it, so that whole
nodes stay free. A larger gang takes wholly free nodes of one accelerator type, and for its last workers a node that may
be shared.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.occupancy import Occupancy, Placement
from cluster.resources import Gang

_Zone = tuple[bool, int, float]  # has GPUs, kind, promised from
_Level = tuple[int, bool]  # free slots, wholly free: of nodes with as many free slots, one in use comes first


class FreeSlots:
    """The free slots of the usable nodes of one occupancy. Lives for one plan; the occupancy itself is not changed.

    A node may be promised to somebody from a time on (`promise`): then only gangs that are gone by then are put there.
    """

    def __init__(self, occupancy: Occupancy, until_s: Sequence[float] | None = None) -> None:
        self._of = occupancy
        now_free = occupancy.free * occupancy.usable
        self.free: list[int] = now_free.tolist()
        self._cpus: list[int] = occupancy.cpus_free.tolist()
        self._sizes, self._kinds, self._gpu = occupancy.lists
        self.until_s: list[float] = list(until_s) if until_s is not None else [math.inf] * len(self.free)
        self.promises: list[float] = sorted({at for at in self.until_s if at < math.inf}) if until_s is not None else []
        self._until_array: NDArray[np.float64] | None = None
        self.total = 0
        self._with_free = [0] * (occupancy.slots.shape[1] + 1)  # nodes by free slots
        self._highest = 0  # no node has more free slots
        # Heaps of nodes; an entry whose node has changed since is stale.
        self._zones: dict[_Zone, dict[_Level, list[int]]] = {}
        for node in now_free.nonzero()[0].tolist():
            free = self.free[node]
            self.total += free
            self._with_free[free] += 1
            if free > self._highest:
                self._highest = free
            self._enter(node)

    @cached_property
    def _largest(self) -> dict[int, int]:
        """Slots of the largest usable node, by kind."""
        of = self._of
        usable = np.where(of.usable, of.sizes, 0)
        return {kind: int(usable[of.kinds == kind].max(initial=0)) for kind in range(len(of.types))}

    def place(self, gang: Gang, ends_s: float = math.inf) -> Placement | None:
        """Take slots for a gang that is gone at `ends_s`; None where it does not fit now."""
        placement = self._find(gang, ends_s)
        if placement is not None:
            self.take(gang, placement)
        return placement

    def take(self, gang: Gang, placement: Placement) -> None:
        for node, workers in placement:
            self._change(node, gang, -workers)

    def give(self, gang: Gang, placement: Placement) -> None:
        """Give slots back, of a gang that is stopped. Nodes that are not usable stay without free slots."""
        for node, workers in placement:
            self._change(node, gang, workers)

    def promise(self, nodes: Iterable[int], until_s: float) -> None:
        """From `until_s` on these nodes are somebody's."""
        for node in nodes:
            self.until_s[node] = min(self.until_s[node], until_s)
            if self.free[node]:
                self._enter(node)
        self.promises = sorted({at for at in self.until_s if at < math.inf})
        self._until_array = None

    def promised_before(self, ends_s: float) -> NDArray[np.bool_]:
        """[nodes]; those that are somebody else's before then."""
        if self._until_array is None:
            self._until_array = np.array(self.until_s)
        promised: NDArray[np.bool_] = self._until_array < ends_s
        return promised

    def _change(self, node: int, gang: Gang, workers: int) -> None:
        self._cpus[node] -= -workers * gang.cpus_per_worker
        slots = self._of.slots_for(gang, node, workers)
        if slots and self._of.usable[node]:
            self._with_free[self.free[node]] -= 1
            self.free[node] += slots
            self._with_free[self.free[node]] += 1
            self._highest = max(self._highest, self.free[node])
            self.total += slots
            if self.free[node]:
                self._enter(node)

    def _zone(self, node: int) -> _Zone:
        return self._gpu[node], self._kinds[node], self.until_s[node]

    def _level(self, node: int) -> _Level:
        return self.free[node], self.free[node] == self._sizes[node]

    def _enter(self, node: int) -> None:
        levels = self._zones.setdefault((self._gpu[node], self._kinds[node], self.until_s[node]), {})
        free = self.free[node]
        heapq.heappush(levels.setdefault((free, free == self._sizes[node]), []), node)

    def _find(self, gang: Gang, ends_s: float) -> Placement | None:
        if not gang.gpus_per_worker:
            return self._find_by_cpus(gang, ends_s)
        slots = gang.num_workers * gang.gpus_per_worker
        on_one_only = slots <= self._of.smallest
        if slots > (self._most_on_one() if on_one_only else self.total):
            return None
        zones = self._zones_for(gang, ends_s)
        node = self._best_node(zones, gang, gang.num_workers)
        if node is not None:
            return ((node, gang.num_workers),)
        if on_one_only:
            return None
        by_kind: dict[int, list[_Zone]] = {}
        for zone in zones:
            if slots > self._largest.get(zone[1], 0):
                by_kind.setdefault(zone[1], []).append(zone)
        for same_kind in by_kind.values():
            placement = self._whole_nodes(same_kind, gang)
            if placement is not None:
                return placement
        return None

    def _most_on_one(self) -> int:
        """Free slots of the node with the most."""
        while self._highest and not self._with_free[self._highest]:
            self._highest -= 1
        return self._highest

    def _zones_for(self, gang: Gang, ends_s: float) -> list[_Zone]:
        """Those the gang may use, the ones that are promised soonest first: they are of use to few."""
        types, wanted = self._of.types, gang.accelerator_type
        gpus = gang.gpus_per_worker > 0
        found = [
            zone
            for zone in self._zones
            if zone[0] == gpus and zone[2] >= ends_s and (wanted is None or types[zone[1]] == wanted)
        ]
        return sorted(found, key=lambda zone: (zone[2], zone[1])) if len(found) > 1 else found

    def _best_node(self, zones: Sequence[_Zone], gang: Gang, workers: int, avoid: Sequence[int] = ()) -> int | None:
        """The node with the fewest free slots that holds so many workers; of equals one in use, then the lowest."""
        slots, cpus = workers * gang.gpus_per_worker, workers * gang.cpus_per_worker
        best: tuple[_Level, int] | None = None
        for zone in zones:
            levels = self._zones[zone]
            for level in sorted(level for level in levels if level[0] >= slots):
                if best is not None and level > best[0]:
                    break
                fits = (node for node in self._nodes(zone, level) if self._cpus[node] >= cpus and node not in avoid)
                node = next(fits, None)
                if node is not None:
                    best = min(best, (level, node)) if best is not None else (level, node)
                    break
        return best[1] if best is not None else None

    def _whole_nodes(self, zones: Sequence[_Zone], gang: Gang) -> Placement | None:
        """Wholly free nodes, the largest first, and one that may be shared for the rest."""
        chosen: list[tuple[int, int]] = []
        left = gang.num_workers
        levels = sorted((-level[0], zone, level) for zone in zones for level in self._zones[zone] if level[1])
        for node in (node for _, zone, level in levels for node in self._nodes(zone, level)):
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

    def _find_by_cpus(self, gang: Gang, ends_s: float) -> Placement | None:
        """One node where it fits, without GPUs if there is one; else wholly free nodes without GPUs."""
        need = gang.num_workers * gang.cpus_per_worker
        fits = [
            (self._gpu[node], self._cpus[node], node)
            for node in np.flatnonzero(self._of.usable).tolist()
            if self._cpus[node] >= need
            and self.until_s[node] >= ends_s
            and (self._gpu[node] or self.free[node] >= need)
            and gang.accelerator_type in (None, self._of.types[self._kinds[node]])
        ]
        if fits:
            return ((min(fits)[2], gang.num_workers),)
        chosen: list[tuple[int, int]] = []
        left = gang.num_workers
        for node in sorted(range(len(self.free)), key=lambda node: (-self._sizes[node], node)):
            whole = self.free[node] == self._sizes[node] and not self._gpu[node] and self.until_s[node] >= ends_s
            workers = min(self._fits_cpus(gang, node), left) if whole and self.free[node] else 0
            if workers:
                chosen.append((node, workers))
                left -= workers
            if not left:
                return tuple(chosen)
        return None

    def _fits_cpus(self, gang: Gang, node: int) -> int:
        return self._cpus[node] // gang.cpus_per_worker if gang.cpus_per_worker else gang.num_workers

    def _nodes(self, zone: _Zone, level: _Level) -> Iterator[int]:
        """The nodes at a level, the lowest first. They go back on the heap, less what is stale, when it is left."""
        heap = self._zones[zone][level]
        seen: list[int] = []
        try:
            while heap:
                node = heapq.heappop(heap)
                if self._level(node) == level and self._zone(node) == zone and (not seen or seen[-1] != node):
                    seen.append(node)
                    yield node
        finally:
            for node in seen:
                heapq.heappush(heap, node)
