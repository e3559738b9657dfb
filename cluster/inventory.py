"""What machines there are. Values only; `cluster.ray_backend` fills them from a living cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


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
        node: as each of them is; its id is the type's name.
        most: at once, those that are there included.
    """

    node: Node
    most: int


@dataclass(frozen=True)
class Growth:
    """How far an autoscaler may take a cluster. Without types there is none.

    Attributes:
        most_nodes: of all types together, that of the head included, as far as these have CPUs or GPUs.
    """

    types: tuple[NodeType, ...] = ()
    most_nodes: int = 0


@dataclass(frozen=True)
class Inventory:
    """All living machines of a cluster, and what may be added to them."""

    nodes: tuple[Node, ...]
    growth: Growth = Growth()

    @property
    def labels(self) -> dict[str, str]:
        """What people call each node, by id: its name, where no other node has the same."""
        named = Counter(node.name for node in self.nodes)
        return {node.node_id: node.name if node.name and named[node.name] == 1 else node.node_id for node in self.nodes}

    @property
    def more(self) -> tuple[tuple[Node, int], ...]:
        """Nodes of each type that may still be added, as they would be, and how many. See `most_more` for all."""
        present, found = Counter(map(_shape, self.nodes)), []
        for one in self.growth.types:
            there = min(present[_shape(one.node)], one.most)
            present[_shape(one.node)] -= there
            found.append((one.node, one.most - there))
        return tuple((node, count) for node, count in found if count)

    @property
    def most_more(self) -> int:
        """Nodes that may still be added in all. One that has only just come has nothing yet, and does not count."""
        there = sum(bool(node.cpus or node.gpus) for node in self.nodes)
        return max(0, min(self.growth.most_nodes - there, sum(count for _, count in self.more)))

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)


def _shape(node: Node) -> tuple[int, int, str | None]:
    """By which a node is known to be of a type: labels do not say it on every Ray."""
    return node.cpus, node.gpus, node.accelerator_type
