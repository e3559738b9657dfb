"""Whether a cluster could hold a gang at all. Pure functions of an inventory; `cluster.free` finds the place."""

from __future__ import annotations

from cluster.errors import CapacityError
from cluster.inventory import Inventory, Node
from cluster.resources import Gang


def workers_that_fit(gang: Gang, node: Node) -> int:
    """Workers of the gang that one empty node holds."""
    if gang.accelerator_type is not None and node.accelerator_type != gang.accelerator_type:
        return 0
    by_cpu = node.cpus // gang.cpus_per_worker
    return min(by_cpu, node.gpus // gang.gpus_per_worker) if gang.gpus_per_worker else by_cpu


def largest_gang(gang: Gang, inventory: Inventory) -> int:
    """Workers of the largest such gang that the empty cluster holds, on nodes of one accelerator type."""
    if not gang.gpus_per_worker:
        return sum(workers_that_fit(gang, node) for node in inventory.nodes)
    types = {node.accelerator_type for node in inventory.nodes}
    return max(
        (
            sum(workers_that_fit(gang, node) for node in inventory.nodes if node.accelerator_type == one)
            for one in types
        ),
        default=0,
    )


def check_can_ever_fit(gang: Gang, inventory: Inventory) -> None:
    """Refuse a gang that the whole cluster could not hold even if it were empty.

    Raises:
        CapacityError: with the numbers, and the largest gang that would fit.
    """
    largest = largest_gang(gang, inventory)
    if largest >= gang.num_workers:
        return
    advice = f"the most that would fit is resources.num_workers: {largest}" if largest else "not one worker fits"
    if not largest and gang.gpus_per_worker and not inventory.gpus:
        advice = "there is no GPU at all: set resources.gpus_per_worker: 0 to use CPUs, or take a cluster with GPUs"
    elif not largest and gang.accelerator_type is not None:
        types = sorted({node.accelerator_type for node in inventory.nodes if node.accelerator_type})
        advice = f"its accelerator types are: {', '.join(types) or 'none'}"
    raise CapacityError(
        f"the spec asks for {gang}, but the cluster has {len(inventory.nodes)} node(s) with {inventory.cpus} CPUs and "
        f"{inventory.gpus} GPUs in all; {advice}"
    )
