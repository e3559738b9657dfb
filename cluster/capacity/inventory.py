"""What machines there are. Values only; `cluster.ray.connection` fills them from a living cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True)
class Node:
    """One machine, in Ray's logical resources."""

    node_id: str
    cpus: int
    gpus: int = 0
    accelerator_type: str | None = None
    usable: bool = True  # False: cordoned, draining or suspected; nothing new is put there
    foreign_gpus: int = 0  # held by somebody else than Fleetune
    foreign_cpus: int = 0
    name: str = ""  # for people; empty where the id is one


@dataclass(frozen=True)
class NodeType:
    """Machines that an autoscaler may add.

    Attributes:
        node: as each of them is, as far as that is known; its id is the type's name.
        most: at once, those that are there included.
        asks: the accelerator type by which the autoscaler knows them; None: it does not.
    """

    node: Node
    most: int
    asks: str | None = None

    def is_of(self, node: Node) -> bool:
        """Whether a living node looks like it: its labels do not say it on every Ray."""
        kinds = {None, self.node.accelerator_type, node.accelerator_type}
        return (node.cpus, node.gpus) == (self.node.cpus, self.node.gpus) and len(kinds) <= 2


@dataclass(frozen=True)
class Growth:
    """How far an autoscaler may take a cluster. Without types there is none.

    Attributes:
        most_nodes: of all types together.
        head: how the head's own node looks, where that is known: it is no worker.
    """

    types: tuple[NodeType, ...] = ()
    most_nodes: int = 0
    head: NodeType | None = None


@dataclass(frozen=True)
class Inventory:
    """All living machines of a cluster, and what may be added to them."""

    nodes: tuple[Node, ...]
    growth: Growth = Growth()

    @cached_property
    def kinds(self) -> tuple[NodeType | None, ...]:
        """[nodes]; what each is of; None: the head, or no machine of the autoscaler's, or it has only just come."""
        head, counts, found = self.growth.head, Counter[str](), list[NodeType | None]()
        for node in self.nodes:
            if head is not None and head.is_of(node):
                head, kind = None, None
            else:
                alike = [one for one in self.growth.types if one.is_of(node)]
                kind = next((one for one in alike if counts[one.node.node_id] < one.most), None)
                kind = kind or (alike[0] if alike else None)
            if kind is not None:
                counts[kind.node.node_id] += 1
            found.append(kind)
        return tuple(found)

    @cached_property
    def more(self) -> tuple[tuple[NodeType, int], ...]:
        """Types of which nodes may still be added, and how many. See `most_more` for all together.

        A type that does not say which accelerator it has is known by those that are there.
        """
        counts = Counter(kind.node.node_id for kind in self.kinds if kind is not None)
        known = {
            kind.node.node_id: node.accelerator_type
            for node, kind in zip(self.nodes, self.kinds, strict=True)
            if kind is not None and node.accelerator_type is not None
        }
        found = []
        for kind in self.growth.types:
            accelerator = kind.node.accelerator_type or known.get(kind.node.node_id)
            left = kind.most - counts[kind.node.node_id]
            if left > 0:
                found.append((replace(kind, node=replace(kind.node, accelerator_type=accelerator)), left))
        return tuple(found)

    @cached_property
    def most_more(self) -> int:
        """Nodes that may still be added in all."""
        there = sum(kind is not None for kind in self.kinds)
        return max(0, min(self.growth.most_nodes - there, sum(count for _, count in self.more)))

    @property
    def labels(self) -> dict[str, str]:
        """What people call each node, by id: its name, where no other node has the same."""
        named = Counter(node.name for node in self.nodes)
        return {node.node_id: node.name if node.name and named[node.name] == 1 else node.node_id for node in self.nodes}

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)
