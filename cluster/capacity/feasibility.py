"""Whether a cluster could hold a gang at all. Pure functions of an inventory; `free_slots` finds the places."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import CapacityError
from cluster.text import many


def workers_that_fit(gang: Gang, node: Node) -> int:
    """Return the number of the gang's workers that fit on one empty node."""
    if gang.accelerator_type is not None and node.accelerator_type != gang.accelerator_type:
        return 0
    by_cpu = node.cpus // gang.cpus_per_worker
    return min(by_cpu, node.gpus // gang.gpus_per_worker) if gang.gpus_per_worker else by_cpu


def largest_gang(gang: Gang, inventory: Inventory) -> int:
    """Return the largest number of such workers that the cluster could hold, if it were empty and had its most nodes.

    A gang with GPUs uses nodes of one accelerator type. One without GPUs fits on one node of any kind, or across
    several nodes without GPUs.
    """
    nodes = _nodes_and_more(inventory)
    if gang.gpus_per_worker:
        kinds = {node.accelerator_type for node in nodes}
        return max((_workers_on(gang, inventory, partial(_is_of, kind)) for kind in kinds), default=0)
    spanning = _workers_on(gang, inventory, lambda node: not node.gpus)
    return max([spanning, *(workers_that_fit(gang, node) for node in nodes)])


def _is_of(accelerator_type: str | None, node: Node) -> bool:
    return node.accelerator_type == accelerator_type


def _nodes_and_more(inventory: Inventory) -> list[Node]:
    """Return the existing nodes, and one node of each type that the autoscaler may add."""
    return [*inventory.nodes, *(kind.node for kind, _ in inventory.more if inventory.most_more)]


def _workers_on(gang: Gang, inventory: Inventory, may_be_on: Callable[[Node], bool]) -> int:
    def each(node: Node) -> int:
        return workers_that_fit(gang, node) if may_be_on(node) else 0

    found, left = sum(map(each, inventory.nodes)), inventory.most_more
    for kind, count in sorted(inventory.more, key=lambda one: -each(one[0].node)):
        found += each(kind.node) * min(count, left)
        left -= min(count, left)
    return found


def check_can_ever_fit(gang: Gang, inventory: Inventory) -> None:
    """Reject a gang that the cluster could not hold even if it were empty and had its most nodes.

    Raises:
        CapacityError: the gang cannot fit. The message has the numbers, and the largest gang that would fit.
    """
    largest = largest_gang(gang, inventory)
    if largest >= gang.num_workers:
        return
    advice = f"the most that would fit is resources.num_workers: {largest}" if largest else "not one worker fits"
    nodes = _nodes_and_more(inventory)
    if not largest and gang.gpus_per_worker and not any(node.gpus for node in nodes):
        advice = "there is no GPU at all: set resources.gpus_per_worker: 0 to use CPUs, or take a cluster with GPUs"
    elif not largest:
        types = sorted({node.accelerator_type for node in nodes if node.accelerator_type})
        if gang.accelerator_type is not None and gang.accelerator_type not in types:
            advice = f"its accelerator types are: {', '.join(types) or 'none'}"
        elif of_type := [node for node in nodes if gang.accelerator_type in (None, node.accelerator_type)]:
            most = max(of_type, key=lambda node: (node.gpus, node.cpus))
            of_gpus = f"{many(most.gpus, 'GPU')} and " if gang.gpus_per_worker else ""
            advice += f": the largest node has {of_gpus}{many(most.cpus, 'CPU')}; lower what a worker needs"
    raise CapacityError(
        f"the spec asks for {gang}, but the cluster has {many(len(inventory.nodes), 'node')} with {inventory.cpus} "
        f"CPUs and {inventory.gpus} GPUs in all{_format_growth(inventory)}; {advice}"
    )


def _format_growth(inventory: Inventory) -> str:
    """Format what the autoscaler may add: `, and Ray's autoscaler may add 4 more nodes (at most 3 of gpu, 3 of cpu)`.

    Returns '' without an autoscaler.
    """
    if not inventory.growth.types:
        return ""
    kinds = ", ".join(f"{count} of {kind.node.node_id}" for kind, count in inventory.more)
    most = f" (at most {kinds})" if inventory.most_more else ""
    return f", and Ray's autoscaler may add {many(inventory.most_more, 'more node')}{most}"
