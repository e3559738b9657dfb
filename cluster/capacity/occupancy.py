"""Occupancy: which job holds which slots of which node, at one moment. Values only.

A node's slots are its GPUs, or its CPUs where it has no GPU. Gangs that need no GPU take CPUs of GPU nodes and no slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node

# Values of slots that no job holds. They are negative, so that they index an array of rows from its end.
FREE, ABSENT, FOREIGN = -1, -2, -3

Placement = tuple[tuple[int, int], ...]  # (node, workers there), nodes by their number


def slots_of(node: Node) -> int:
    return node.gpus or node.cpus


def _kind_of(node: Node) -> tuple[str | None, bool]:
    return (node.accelerator_type, True) if node.gpus else (None, False)


@dataclass(frozen=True)
class Occupancy:
    """The nodes of a cluster and the jobs on them.

    Attributes:
        names: names of the nodes. All other attributes have the nodes in this order.
        slots: int32 [nodes, slots of the largest node]; the row of the job that holds the slot, or FREE, ABSENT (the
            node has fewer slots) or FOREIGN (used by other programs).
        sizes: int32 [nodes]; number of slots.
        free: int32 [nodes]; number of free slots, as in `slots`.
        cpus_free: int32 [nodes]; free CPUs.
        cpus: int32 [nodes]; all CPUs.
        foreign_cpus: int32 [nodes]; CPUs that other programs use.
        kinds: int32 [nodes]; index into `types`. Nodes with and without GPUs never have the same kind.
        types: the accelerator type of each kind; None: no GPU, or an unknown type.
        has_gpus: bool [nodes].
        usable: bool [nodes]; False: nothing new may be placed there (cordoned, draining or suspected).
        without_slots: the placements of jobs that take only CPUs, on nodes with GPUs.
    """

    names: tuple[str, ...]
    slots: NDArray[np.int32]
    sizes: NDArray[np.int32]
    free: NDArray[np.int32]
    cpus: NDArray[np.int32]
    cpus_free: NDArray[np.int32]
    foreign_cpus: NDArray[np.int32]
    kinds: NDArray[np.int32]
    types: tuple[str | None, ...]
    has_gpus: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    without_slots: dict[int, Placement] = field(default_factory=dict)

    @staticmethod
    def of(inventory: Inventory, held: Iterable[tuple[int, Gang, Placement]] = ()) -> Occupancy:
        """Make the occupancy of an inventory. `held`: (row of the job, its gang, its placement)."""
        nodes = inventory.nodes
        sizes = np.array([slots_of(node) for node in nodes], np.int32)
        slots = np.full((len(nodes), max(sizes, default=0)), ABSENT, np.int32)
        slots[np.arange(slots.shape[1]) < sizes[:, None]] = FREE
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(map(_kind_of, nodes)))}
        cpus = np.array([node.cpus for node in nodes], np.int32)
        occupancy = Occupancy(
            names=tuple(node.node_id for node in nodes),
            slots=slots,
            sizes=sizes,
            free=sizes.copy(),
            cpus=cpus,
            cpus_free=cpus.copy(),
            foreign_cpus=np.array([node.foreign_cpus for node in nodes], np.int32),
            kinds=np.array([kinds[_kind_of(node)] for node in nodes], np.int32),
            types=tuple(accelerator_type for accelerator_type, _ in kinds),
            has_gpus=np.array([node.gpus > 0 for node in nodes], bool),
            usable=np.array([node.usable for node in nodes], bool),
        )
        for index, node in enumerate(nodes):
            if node.foreign_gpus or node.foreign_cpus:
                foreign = node.foreign_gpus if node.gpus else node.foreign_cpus
                occupancy.take(index, FOREIGN, min(foreign, slots_of(node)), node.foreign_cpus)
        occupancy.hold_all(held)
        return occupancy

    def fits(self, gang: Gang) -> NDArray[np.bool_]:
        """[nodes]; usable nodes of the gang's type. They have GPUs if the gang needs some, and none otherwise."""
        fits: NDArray[np.bool_] = self.usable & (self.has_gpus == (gang.gpus_per_worker > 0))
        return fits if gang.accelerator_type is None else fits & np.isin(self.kinds, list(self.kinds_for(gang)))

    def may_hold(self, gang: Gang) -> NDArray[np.bool_]:
        """[nodes]; like `fits`, but nodes with GPUs are included for a gang that needs none."""
        of_kind = np.zeros(len(self.types), bool)
        of_kind[list(self.kinds_for(gang))] = True
        found: NDArray[np.bool_] = self.usable & of_kind[self.kinds]
        return found

    def copy(self) -> Occupancy:
        """Return a copy whose slots, CPUs and `usable` can be changed while a plan is made."""
        other = object.__new__(Occupancy)
        # What is derived from the nodes alone is computed here once, and all copies share it.
        _ = self.lists, self.total_gpus, self.total_cpus, self._smallest, self._kinds_for, self._holds_all
        own = {name: getattr(self, name).copy() for name in ("slots", "free", "cpus_free", "usable", "without_slots")}
        other.__dict__.update(self.__dict__, **own)
        return other

    @cached_property
    def total_gpus(self) -> int:
        return int(self.sizes[self.has_gpus].sum())

    @cached_property
    def total_cpus(self) -> int:
        return int(self.cpus.sum())

    def kinds_for(self, gang: Gang) -> frozenset[int]:
        """Return the kinds of nodes that can hold workers of a gang: with GPUs of its type, if it needs any."""
        key = (gang.gpus_per_worker > 0, gang.accelerator_type)
        if key not in self._kinds_for:
            pairs = set(zip(self.kinds.tolist(), self.has_gpus.tolist(), strict=True))
            self._kinds_for[key] = frozenset(
                kind for kind, gpus in pairs if (gpus or not key[0]) and key[1] in (None, self.types[kind])
            )
        return self._kinds_for[key]

    @cached_property
    def _kinds_for(self) -> dict[tuple[bool, str | None], frozenset[int]]:
        return {}

    def spans_nodes(self, gang: Gang, kind: int) -> bool:
        """Whether the gang needs several nodes of this kind, because no usable one could hold it even if empty."""
        holds_all = self._holds_all.get((gang, kind))
        if holds_all is None:
            per_worker = gang.gpus_per_worker or gang.cpus_per_worker
            workers = np.minimum(self.sizes // per_worker, self.cpus // max(gang.cpus_per_worker, 1))
            holds_all = self._holds_all[gang, kind] = (workers >= gang.num_workers) & (self.kinds == kind)
        return not (self.usable & holds_all).any()

    @cached_property
    def _holds_all(self) -> dict[tuple[Gang, int], NDArray[np.bool_]]:
        """[nodes]; whether each node is of a kind and could hold a whole gang if it were empty."""
        return {}

    def fits_every_node(self, gang: Gang) -> bool:
        """Whether every node with GPUs could hold the whole gang if it were empty."""
        slots, cpus = self._smallest
        return gang.num_workers * gang.gpus_per_worker <= slots and gang.num_workers * gang.cpus_per_worker <= cpus

    @cached_property
    def _smallest(self) -> tuple[int, int]:
        """The fewest slots and the fewest CPUs of a node with GPUs."""
        if not self.has_gpus.any():
            return 0, 0
        return int(self.sizes[self.has_gpus].min()), int(self.cpus[self.has_gpus].min())

    @cached_property
    def lists(self) -> tuple[list[int], list[int], list[bool]]:
        """Sizes, kinds and has_gpus as lists, which are faster to read one by one."""
        return self.sizes.tolist(), self.kinds.tolist(), self.has_gpus.tolist()

    def take(self, node: int, row: int, slots: int, cpus: int) -> None:
        """Give the first free slots of a node to a row."""
        if slots:
            line = self.slots[node]
            free = (line == FREE).nonzero()[0][:slots]
            if len(free) < slots:
                raise ValueError(f"{self.names[node]} has {len(free)} free slots, not {slots}")
            line[free] = row
            self.free[node] -= slots
        self.cpus_free[node] -= cpus

    def hold(self, row: int, gang: Gang, placement: Placement) -> None:
        self._note(row, gang, placement)
        for node, workers in placement:
            slots = self.slots_for(gang, node, workers)
            self.take(node, row, slots, workers * gang.cpus_per_worker)

    def hold_all(self, held: Iterable[tuple[int, Gang, Placement]]) -> None:
        """Do what `hold` does for many jobs at once."""
        held = list(held)
        for row, gang, placement in held:
            self._note(row, gang, placement)
        pieces = [
            (node, row, self.slots_for(gang, node, workers), workers * gang.cpus_per_worker)
            for row, gang, placement in held
            for node, workers in placement
        ]
        if not pieces:
            return
        pieces.sort()
        nodes, rows, slots, cpus = np.array(pieces, np.int64).T
        lines = np.repeat(nodes, slots)
        wanted = np.bincount(lines, minlength=len(self.names))
        if (over := (wanted > self.free).nonzero()[0]).size:
            node = int(over[0])
            raise ValueError(f"{self.names[node]} has {self.free[node]} free slots, not {wanted[node]}")
        # The n-th slot that is taken on a node is its n-th free one.
        number = np.arange(len(lines)) - np.concatenate([[0], np.cumsum(wanted)[:-1]])[lines]
        free_first = np.argsort(self.slots != FREE, axis=1, kind="stable")
        self.slots[lines, free_first[lines, number]] = np.repeat(rows, slots)
        np.subtract(self.free, wanted.astype(np.int32), out=self.free)
        np.subtract.at(self.cpus_free, nodes, cpus)

    def _note(self, row: int, gang: Gang, placement: Placement) -> None:
        if not gang.gpus_per_worker and any(self.has_gpus[node] for node, _ in placement):
            self.without_slots[row] = placement

    def release(self, row: int, gang: Gang, placement: Placement) -> None:
        self.without_slots.pop(row, None)
        for node, workers in placement:
            line = self.slots[node]
            line[line == row] = FREE
            self.free[node] += self.slots_for(gang, node, workers)
            self.cpus_free[node] += workers * gang.cpus_per_worker

    def slots_for(self, gang: Gang, node: int, workers: int) -> int:
        """Return how many slots these workers of the gang hold on a node."""
        if gang.gpus_per_worker:
            return workers * gang.gpus_per_worker
        return 0 if self.has_gpus[node] else workers * gang.cpus_per_worker


def workers_in(placement: Iterable[tuple[object, int]]) -> int:
    return sum(workers for _, workers in placement)


def placement_of(row: int, gang: Gang, occupancy: Occupancy) -> Placement:
    """Return the placement of a row, from its slots unless it has none. Empty if the gang holds nothing."""
    if row in occupancy.without_slots:
        return occupancy.without_slots[row]
    held = Counter((occupancy.slots == row).nonzero()[0].tolist())
    per_worker = gang.gpus_per_worker or gang.cpus_per_worker
    return tuple((node, slots // per_worker) for node, slots in held.items())
