"""Machines as values. `cluster.ray.connection` reads them from a living cluster."""

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
    usable: bool = True  # False: cordoned, draining or suspected, so that nothing new is placed there
    foreign_gpus: int = 0  # held by other programs than Fleetune's
    foreign_cpus: int = 0
    name: str = ""  # for people; empty: the id is shown


@dataclass(frozen=True)
class NodeType:
    """Machines that an autoscaler may add.

    Attributes:
        node: what a node of this type has, as far as it is known. Its id is the name of the type.
        most: most nodes of this type at once, with those that exist.
        asks: the accelerator type under which the autoscaler knows these nodes; None: it knows none.
    """

    node: Node
    most: int
    asks: str | None = None

    def is_of(self, node: Node) -> bool:
        """Whether a living node looks like this type. Labels are not used, since not every Ray has them."""
        kinds = {None, self.node.accelerator_type, node.accelerator_type}
        return (node.cpus, node.gpus) == (self.node.cpus, self.node.gpus) and len(kinds) <= 2


@dataclass(frozen=True)
class Growth:
    """How far an autoscaler may extend a cluster. Without types, there is no autoscaler.

    Attributes:
        most_nodes: most nodes of all types together.
        head: the type of the head's node, which is no worker; None: unknown.
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
        """[nodes]; the type of each node; None: the head, or a node that the autoscaler has not added."""
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
        """Types of which nodes may still be added, and how many of each. `most_more` bounds the sum.

        If a type does not name its accelerator, the accelerator of its existing nodes is taken.
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
        """How many nodes of all types may still be added."""
        there = sum(kind is not None for kind in self.kinds)
        return max(0, min(self.growth.most_nodes - there, sum(count for _, count in self.more)))

    @property
    def labels(self) -> dict[str, str]:
        """The label of each node for people, by id: its name if no other node has it, else its id."""
        named = Counter(node.name for node in self.nodes)
        return {node.node_id: node.name if node.name and named[node.name] == 1 else node.node_id for node in self.nodes}

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)
