"""Computes the demand for an autoscaler: the nodes in use, and nodes for the first waiting gangs. Pure functions.

An autoscaler packs the demand into the existing nodes as if they were empty, and adds nodes for what is left. It may
pack more tightly than the jobs are placed, and so overlook that a gang does not fit. The demand therefore consists of
whole nodes: those in use, and those on which the waiting gangs would be placed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from cluster.capacity.free_slots import FreeSlots, Terms
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node, NodeType
from cluster.capacity.occupancy import Occupancy, Placement
from cluster.ray.bundles import Bundle, bundle
from cluster.text import many
from orchestrator.controller.ledger import Cluster, Nominations, places_of, snapshot
from orchestrator.queue.records import Job
from orchestrator.queue.states import DesiredState, State
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import NOWHERE, Limits
from orchestrator.scheduling.ranking import ranking

_MOST_AT_ONCE = 1000  # most new nodes in one demand


@dataclass(frozen=True)
class Demand:
    """The demand for an autoscaler.

    Attributes:
        bundles: resources to provide at once, one bundle for each node.
        waiting: ids of the waiting jobs for which this is enough.
    """

    bundles: tuple[Bundle, ...] = ()
    waiting: tuple[str, ...] = ()


def demand(jobs: Sequence[Job], nominations: Nominations, cluster: Cluster, policy: Policy, now_s: float) -> Demand:
    """Return the demand of a queue after a plan. It is empty if no autoscaler adds nodes.

    Waiting gangs are taken in the order of the queue, as long as the largest possible cluster has room for them beside
    the running jobs. The first gang without room ends the demand, since later gangs would take what it needs. Jobs are
    skipped if they wait for their tenant's limit, or if even the largest possible cluster could not hold them when
    empty.

    Nodes that the autoscaler does not manage are left out.
    """
    inventory = cluster.inventory
    if not inventory.growth.types:
        return Demand()
    living = {node.node_id for node in inventory.nodes}
    held = {node for job in jobs for node, _ in places_of(job, nominations, cluster, living)}
    waits = any(
        job.state is State.QUEUED and job.wanted is DesiredState.RUN and job.job_id not in nominations for job in jobs
    )
    grown = _Grown(inventory, cluster.closed)
    placed = list(_placed(grown, jobs, nominations, cluster, policy, now_s)) if waits else []
    if placed:
        held |= {node.node_id for node in inventory.nodes if node.foreign_cpus or node.foreign_gpus} | cluster.closed
        held |= {grown.nodes[index].node_id for _, placement in placed for index, _ in placement}
    return Demand(
        tuple(
            bundle(kind.node.cpus, kind.node.gpus, kind.asks)
            for node, kind in zip(grown.nodes, grown.kinds, strict=True)
            if kind is not None and node.node_id in held
        ),
        tuple(jobs[row].job_id for row, _ in placed),
    )


class _Grown:
    """The largest possible cluster. If node types compete for the last nodes, each is listed with all it could get.

    Nodes that were just added, and whose use is not known yet, count as usable: they will be in a moment.
    """

    def __init__(self, inventory: Inventory, closed: frozenset[str]) -> None:
        """`closed`: ids of nodes that take nothing new."""
        self._closed = closed
        self.there, self.most_more = len(inventory.nodes), min(inventory.most_more, _MOST_AT_ONCE)
        added = [
            (replace(kind.node, node_id=f"a new {kind.node.node_id} {number}"), kind)
            for kind, count in inventory.more
            for number in range(min(count, self.most_more))
        ]
        self.nodes = (*(replace(node, usable=True) for node in inventory.nodes), *(node for node, _ in added))
        self.kinds: tuple[NodeType | None, ...] = (*inventory.kinds, *(kind for _, kind in added))

    def new(self, placement: Placement) -> set[int]:
        """Return those nodes of a placement that do not exist yet."""
        return {index for index, _ in placement if index >= self.there}

    def could_hold(self, gang: Gang) -> bool:
        """Whether the cluster would have room for a gang if there were no jobs."""
        placement = self._empty.place(gang)
        if placement is None:
            return False
        self._empty.give(gang, placement)
        return len(self.new(placement)) <= self.most_more

    @cached_property
    def _empty(self) -> FreeSlots:
        nodes = (
            replace(node, foreign_cpus=0, foreign_gpus=0, usable=node.node_id not in self._closed)
            for node in self.nodes
        )
        return FreeSlots(Occupancy.of(Inventory(tuple(nodes))))


def _placed(
    grown: _Grown, jobs: Sequence[Job], nominations: Nominations, cluster: Cluster, policy: Policy, now_s: float
) -> Iterator[tuple[int, Placement]]:
    """Yield the rows of waiting jobs that would fit, with their placements."""
    made = snapshot(jobs, nominations, replace(cluster, inventory=Inventory(grown.nodes)), now_s)
    rows = made.waiting.nonzero()[0]
    if not len(rows):
        return
    free, limits, new = FreeSlots(made.cluster), Limits(made), set[int]()
    for row in ranking(made, policy).order(rows, made.jobs.submitted_s).tolist():
        gang, kinds = made.jobs.gang_of(row), limits.kinds(made.jobs, row)
        if kinds == NOWHERE:
            limits.keep(made.jobs, row)
            continue
        placement = free.place(gang, Terms(kinds=kinds))
        if placement is None or len(new | grown.new(placement)) > grown.most_more:
            if placement is not None:
                free.give(gang, placement)
            if grown.could_hold(gang):
                return
            continue
        new |= grown.new(placement)
        if limits:
            limits.take(made.jobs, row, int(made.cluster.kinds[placement[0][0]]))
        yield row, placement


def format_growth(inventory: Inventory) -> str:
    """Describe for people which nodes may still be added; '': no autoscaler adds nodes."""
    if not inventory.growth.types:
        return ""
    if not inventory.most_more:
        return "Ray's autoscaler has added all the nodes that it may"
    kinds = ", ".join(f"{count} x {_format_node(kind.node)}" for kind, count in inventory.more)
    return f"Ray's autoscaler may add {many(inventory.most_more, 'more node')} ({kinds})"


def _format_node(node: Node) -> str:
    gpus = f", {node.gpus} {node.accelerator_type or ''} GPU".replace("  ", " ") if node.gpus else ""
    return f"{node.node_id}: {node.cpus} CPU{gpus}"
