"""What an autoscaler is to be told: room for what is held, and for the gangs at the head of the queue. Pure functions.

An autoscaler packs what it is told into the nodes that there are, as if they were empty, and adds what is missing. So
it is told all that is used, node by node, as one piece each: pieces that it could pack more tightly than they are in
fact would hide that a gang finds no room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.bundles import Bundle, bundle
from cluster.free import FreeSlots, Terms
from cluster.inventory import Inventory, Node
from cluster.occupancy import Placement
from orchestrator.queue.ledger import Cluster, Promises, places_of, snapshot
from orchestrator.queue.records import Job
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import NOWHERE, Limits
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.standing import standing

_MOST_OF_A_TYPE = 1000  # added at once


@dataclass(frozen=True)
class Wish:
    """
    Attributes:
        bundles: a cluster with room for all of these at once; one for each node.
        waiting: ids of the jobs that wait, and for whose gangs that is enough.
    """

    bundles: tuple[Bundle, ...] = ()
    waiting: tuple[str, ...] = ()


def wish(jobs: Sequence[Job], promises: Promises, cluster: Cluster, policy: Policy, now_s: float) -> Wish:
    """Of the queue as it is after a plan. Where no autoscaler adds nodes: nothing.

    The gangs that wait are taken in the order of the queue, as many as the largest cluster has room for beside what
    runs; not those that wait for their tenant's limit. The first that has none is waited for: those behind it would
    take what it needs.
    """
    if not cluster.inventory.growth.types:
        return Wish()
    grown = replace(cluster, inventory=_grown(cluster.inventory))
    made = snapshot(jobs, promises, grown, now_s)
    nodes = grown.inventory.nodes
    cpus, gpus = Counter[str](), Counter[str]()
    living = {node.node_id for node in cluster.inventory.nodes}
    for job in jobs:
        for node_id, workers in places_of(job, promises, cluster, living):
            cpus[node_id] += workers * job.gang.cpus_per_worker
            gpus[node_id] += workers * job.gang.gpus_per_worker
    waiting = []
    for row, placement in _placed(made, policy):
        waiting.append(jobs[row].job_id)
        gang = jobs[row].gang
        for index, workers in placement:
            cpus[nodes[index].node_id] += workers * gang.cpus_per_worker
            gpus[nodes[index].node_id] += workers * gang.gpus_per_worker
    for node in nodes if waiting else ():
        closed = node.node_id in cluster.closed
        cpus[node.node_id] = node.cpus if closed else min(node.cpus, cpus[node.node_id] + node.foreign_cpus)
        gpus[node.node_id] = node.gpus if closed else min(node.gpus, gpus[node.node_id] + node.foreign_gpus)
    pieces = (bundle(cpus[node.node_id], gpus[node.node_id], node.accelerator_type) for node in nodes)
    return Wish(tuple(piece for piece in pieces if piece), tuple(waiting))


def _grown(inventory: Inventory) -> Inventory:
    """As large as it may become; where several types compete for the last nodes, each as if it got them.

    Nodes that have only just come, and of which it is not known yet what is used, will be of use in a moment.
    """
    added = tuple(
        replace(node, node_id=f"a new {node.node_id} {number}")
        for node, count in inventory.more
        for number in range(min(count, inventory.most_more, _MOST_OF_A_TYPE))
    )
    return Inventory((*(replace(node, usable=True) for node in inventory.nodes), *added))


def _placed(made: Snapshot, policy: Policy) -> Iterator[tuple[int, Placement]]:
    """Rows of those that wait, and where they would be."""
    rows = made.waiting.nonzero()[0]
    if not len(rows):
        return
    free, limits = FreeSlots(made.cluster), Limits(made)
    for row in standing(made, policy).order(rows, made.jobs.submitted_s).tolist():
        kinds = limits.kinds(made.jobs, row)
        if kinds == NOWHERE:
            continue
        placement = free.place(made.jobs.gang_of(row), Terms(kinds=kinds))
        if placement is None:
            return
        if limits:
            limits.take(made.jobs, row, int(made.cluster.kinds[placement[0][0]]))
        yield row, placement


def growth_words(inventory: Inventory) -> str:
    """For people; '' where no autoscaler adds nodes."""
    if not inventory.growth.types:
        return ""
    kinds = ", ".join(f"{count} x {_words(node)}" for node, count in inventory.more)
    if not inventory.most_more or not kinds:
        return "Ray's autoscaler has added all the nodes that it may"
    more = "1 more node" if inventory.most_more == 1 else f"{inventory.most_more} more nodes"
    return f"Ray's autoscaler may add {more} ({kinds}), and is told what the first in the queue need"


def _words(node: Node) -> str:
    gpus = f", {node.gpus} {node.accelerator_type or ''} GPU".replace("  ", " ") if node.gpus else ""
    return f"{node.node_id}: {node.cpus} CPU{gpus}"
