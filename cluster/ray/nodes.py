"""An inventory from the answers of Ray's dashboard. Pure functions of JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.capacity.inventory import Inventory, Node
from cluster.ray.bundles import accelerator_of

Use = Mapping[str, tuple[float, float]]  # CPUs and GPUs, by node id

_NO_USE = (0.0, 0.0)
_LINE = re.compile(
    r"^([\d.]+)/[\d.]+ (CPU|GPU)(?: \(([\d.]+) used of ([\d.]+) reserved in placement groups\))?", re.MULTILINE
)
_ROUNDING = 1e-4  # Ray's unit of resources is a ten-thousandth


def inventory_of(nodes: Iterable[Mapping[str, Any]], foreign: Use) -> Inventory:
    """Make the inventory of all living nodes.

    Args:
        nodes: from `/api/v0/nodes?detail=1`.
        foreign: what others than Fleetune use on each node. A node without an entry has just joined, and is not usable
            until it is known what runs there.
    """
    return Inventory(
        tuple(
            _node(node, foreign.get(node["node_id"]))
            for node in sorted(nodes, key=lambda node: str(node["node_id"]))
            if node["state"] == "ALIVE"
        )
    )


def use_from_status(answer: Mapping[str, Any]) -> Use | None:
    """Read `/api/cluster_status`, which is up to 5 s old; None: this cluster's autoscaler does not publish it."""
    report = (answer.get("clusterStatus") or {}).get("loadMetricsReport")
    if not report:
        return None
    return {
        node_id: (float(used.get("CPU", (0, 0))[0]), float(used.get("GPU", (0, 0))[0]))
        for node_id, used in report["usageByNode"].items()
    }


def use_from_summary(answer: Mapping[str, Any]) -> Use:
    """Read `/nodes?view=summary`, which gives the use as text for people."""
    return {node_id: _use_of(text) for node_id, text in answer["nodeLogicalResources"].items()}


def _use_of(text: str) -> tuple[float, float]:
    """Return used CPUs and GPUs, with what placement groups hold and do not use, which the text leaves out."""
    used = {"CPU": 0.0, "GPU": 0.0}
    for busy, resource, of_reserved, reserved in _LINE.findall(text):
        used[resource] = float(busy) + (float(reserved) - float(of_reserved) if reserved else 0.0)
    return used["CPU"], used["GPU"]


def _node(node: Mapping[str, Any], foreign: tuple[float, float] | None) -> Node:
    total = node["resources_total"]
    cpus, gpus = foreign or _NO_USE
    return Node(
        node_id=node["node_id"],
        cpus=int(total.get("CPU", 0)),
        gpus=int(total.get("GPU", 0)),
        accelerator_type=accelerator_of(total),
        usable=foreign is not None,
        foreign_cpus=_whole(cpus),
        foreign_gpus=_whole(gpus),
        name=str(node.get("node_name") or node.get("node_ip") or ""),
    )


def _whole(amount: float) -> int:
    """Round up, since a GPU that is used in part is not free."""
    return max(0, math.ceil(amount - _ROUNDING))
