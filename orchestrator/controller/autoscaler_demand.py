"""What an autoscaler is to be told: room for what is held, and for the gangs at the head of the queue. Pure functions.

An autoscaler packs what it is told into the nodes that there are, as if they were empty, and adds what is missing. It
may pack more tightly than things lie, and hide that a gang finds no room. So it is told whole nodes: those that are in
use, and those that a gang would be put on.
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
from orchestrator.controller.ledger import Cluster, Promises, places_of, snapshot
from orchestrator.queue.records import Job
from orchestrator.queue.states import State, Wanted
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import NOWHERE, Limits
from orchestrator.scheduling.ranking import standing

_MOST_AT_ONCE = 1000  # nodes that are asked for


@dataclass(frozen=True)
class Wish:
    """
    Attributes:
        bundles: a cluster with room for all of these at once: one for each node.
        waiting: ids of the jobs that wait, and for whose gangs that is enough.
    """

    bundles: tuple[Bundle, ...] = ()
    waiting: tuple[str, ...] = ()


def wish(jobs: Sequence[Job], promises: Promises, cluster: Cluster, policy: Policy, now_s: float) -> Wish:
    """Of the queue as it is after a plan. Where no autoscaler adds nodes: nothing.

    The gangs that wait are taken in the order of the queue, as many as the largest cluster has room for beside what
    runs. The first that has none is waited for: those behind it would take what it needs. Those that wait for their
    tenant's limit, or could not start on an empty cluster as large as it may become, are left out.

    Nodes that are not the autoscaler's are none of its business.
    """
    inventory = cluster.inventory
    if not inventory.growth.types:
        return Wish()
    living = {node.node_id for node in inventory.nodes}
    held = {node for job in jobs for node, _ in places_of(job, promises, cluster, living)}
    waits = any(job.state is State.QUEUED and job.wanted is Wanted.RUN and job.job_id not in promises for job in jobs)
    grown = _Grown(inventory)
    placed = list(_placed(grown, jobs, promises, cluster, policy, now_s)) if waits else []
    if placed:
        held |= {node.node_id for node in inventory.nodes if node.foreign_cpus or node.foreign_gpus} | cluster.closed
        held |= {grown.nodes[index].node_id for _, placement in placed for index, _ in placement}
    return Wish(
        tuple(
            bundle(kind.node.cpus, kind.node.gpus, kind.asks)
            for node, kind in zip(grown.nodes, grown.kinds, strict=True)
            if kind is not None and node.node_id in held
        ),
        tuple(jobs[row].job_id for row, _ in placed),
    )


class _Grown:
    """A cluster as large as it may become; where types compete for the last nodes, each as if it got them.

    Nodes that have only just come, and of which it is not known yet what is used, will be of use in a moment.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.there, self.most_more = len(inventory.nodes), min(inventory.most_more, _MOST_AT_ONCE)
        added = [
            (replace(kind.node, node_id=f"a new {kind.node.node_id} {number}"), kind)
            for kind, count in inventory.more
            for number in range(min(count, self.most_more))
        ]
        self.nodes = (*(replace(node, usable=True) for node in inventory.nodes), *(node for node, _ in added))
        self.kinds: tuple[NodeType | None, ...] = (*inventory.kinds, *(kind for _, kind in added))

    def new(self, placement: Placement) -> set[int]:
        """Of its nodes those that are not there yet."""
        return {index for index, _ in placement if index >= self.there}


def _placed(
    grown: _Grown, jobs: Sequence[Job], promises: Promises, cluster: Cluster, policy: Policy, now_s: float
) -> Iterator[tuple[int, Placement]]:
    """Rows of those that wait, and where they would be."""
    made = snapshot(jobs, promises, replace(cluster, inventory=Inventory(grown.nodes)), now_s)
    rows = made.waiting.nonzero()[0]
    if not len(rows):
        return
    free, limits, empty, new = FreeSlots(made.cluster), Limits(made), _Empty(grown, cluster.closed), set[int]()
    for row in standing(made, policy).order(rows, made.jobs.submitted_s).tolist():
        gang, kinds = made.jobs.gang_of(row), limits.kinds(made.jobs, row)
        if kinds == NOWHERE:
            continue
        placement = free.place(gang, Terms(kinds=kinds))
        if placement is None or len(new | grown.new(placement)) > grown.most_more:
            if placement is not None:
                free.give(gang, placement)
            if empty.could_hold(gang):
                return
            continue
        new |= grown.new(placement)
        if limits:
            limits.take(made.jobs, row, int(made.cluster.kinds[placement[0][0]]))
        yield row, placement


class _Empty:
    """The largest cluster with nobody on it, but for nodes that take nothing new."""

    def __init__(self, grown: _Grown, closed: frozenset[str]) -> None:
        self._grown, self._closed = grown, closed
        self._known: dict[Gang, bool] = {}

    def could_hold(self, gang: Gang) -> bool:
        if gang not in self._known:
            placement = self._free.place(gang)
            if placement is not None:
                self._free.give(gang, placement)
            fits = placement is not None and len(self._grown.new(placement)) <= self._grown.most_more
            self._known[gang] = fits
        return self._known[gang]

    @cached_property
    def _free(self) -> FreeSlots:
        nodes = (
            replace(node, foreign_cpus=0, foreign_gpus=0, usable=node.node_id not in self._closed)
            for node in self._grown.nodes
        )
        return FreeSlots(Occupancy.of(Inventory(tuple(nodes))))


def growth_words(inventory: Inventory) -> str:
    """For people; '' where no autoscaler adds nodes."""
    if not inventory.growth.types:
        return ""
    if not inventory.most_more:
        return "Ray's autoscaler has added all the nodes that it may"
    kinds = ", ".join(f"{count} x {_words(kind.node)}" for kind, count in inventory.more)
    more = "1 more node" if inventory.most_more == 1 else f"{inventory.most_more} more nodes"
    return f"Ray's autoscaler may add {more} ({kinds})"


def _words(node: Node) -> str:
    gpus = f", {node.gpus} {node.accelerator_type or ''} GPU".replace("  ", " ") if node.gpus else ""
    return f"{node.node_id}: {node.cpus} CPU{gpus}"
