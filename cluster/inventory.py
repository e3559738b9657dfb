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
class Inventory:
    """All living machines of a cluster."""

    nodes: tuple[Node, ...]

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
