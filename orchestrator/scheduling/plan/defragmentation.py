"""Defragmentation: moving small jobs so that a gang gets a whole node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.free_slots import FreeSlots, Terms
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy, Placement, placement_of
from orchestrator.scheduling.job_table import JobTable
from orchestrator.scheduling.plan.decisions import Rearrangement
from orchestrator.scheduling.plan.plan_builder import PlanBuilder

_TRIED = 3  # number of nodes that are examined
# A slot has the row of its job, or a negative mark: FOREIGN, ABSENT or FREE, which index these last three entries.
_NOBODYS = np.array([False, False, False])


def moves_for(builder: PlanBuilder, row: int, terms: Terms) -> Rearrangement | None:
    """Return the cheapest way to clear one node for a gang, by moving other jobs to slots that are free now.

    None: there is no such way, or it costs more than `move_worth_s` of the gang's own GPUs. Jobs are moved only to
    nodes of the kind that they are on, and to no node that is reserved.
    """
    jobs, free, worth_s = builder.jobs, builder.free, builder.policy.move_worth_s
    gang, size = jobs.gang_of(row), int(jobs.size[row])
    if size < 2 or free.total < size or worth_s <= 0 or not gang.gpus_per_worker:
        return None
    cluster, movable = builder.cluster, builder.victims.movable_for(row)
    nodes = _nodes_for(gang, size, cluster, movable, free.closed_to(terms))
    options = (_option(node, size, jobs, cluster, movable) for node in nodes)
    for cost, node, on_node in sorted(option for option in options if option is not None):
        if cost > worth_s * size:
            return None
        moved = _try(gang, node, on_node, jobs, cluster, free)
        if moved is not None:
            return moved
    return None


def _nodes_for(
    gang: Gang, size: int, cluster: Occupancy, movable: NDArray[np.bool_], closed: NDArray[np.bool_] | None
) -> list[int]:
    """Return the nodes that can be cleared for the gang, those that need the fewest slots cleared first."""
    free = cluster.free
    to_clear = np.concatenate((movable, _NOBODYS))[cluster.slots].sum(axis=1)
    fits = cluster.fits(gang) & (free > 0) & (free + to_clear >= size)
    nodes = (fits if closed is None else fits & ~closed).nonzero()[0]
    nearest: list[int] = nodes[(-free[nodes]).argsort(kind="stable")[:_TRIED]].tolist()
    return nearest


def _option(
    node: int, size: int, jobs: JobTable, cluster: Occupancy, movable: NDArray[np.bool_]
) -> tuple[float, int, tuple[int, ...]] | None:
    """Choose jobs to move off a node, small ones first. Returns (cost in GPU-seconds, node, rows); None: too few."""
    line = cluster.slots[node]
    need = size - int(cluster.free[node])
    held = {row: int((line == row).sum()) for row in dict.fromkeys(line[line >= 0].tolist()) if movable[row]}
    costs, chosen = jobs.interruption_cost_s, list[int]()
    for row in sorted(
        held, key=lambda row: (float(jobs.size[row]), float(costs[row]), float(jobs.submitted_s[row]), row)
    ):
        if need > 0:
            chosen.append(row)
            need -= held[row]
    for row in list(chosen):  # the last choice may free enough to make earlier ones unnecessary
        if held[row] <= -need:
            chosen.remove(row)
            need += held[row]
    cost = sum(float(jobs.size[row] * costs[row]) for row in chosen)
    return (cost, node, tuple(chosen)) if need <= 0 and chosen else None


def _try(
    gang: Gang, node: int, on_node: Sequence[int], jobs: JobTable, cluster: Occupancy, free: FreeSlots
) -> Rearrangement | None:
    """Return the move if all its jobs find slots on other nodes, else None."""
    same_kind = Terms(kinds=frozenset({int(cluster.kinds[node])}))
    if not _may_go_elsewhere(node, on_node, jobs, cluster, free, same_kind):
        return None
    after = cluster.copy()
    for row in on_node:
        after.release(row, jobs.gang_of(row), placement_of(row, jobs.gang_of(row), after))
    if after.cpus_free[node] < gang.num_workers * gang.cpus_per_worker:
        return None
    left = free.after(after)
    placement = ((node, gang.num_workers),)
    left.take(gang, placement)
    elsewhere: list[tuple[int, Placement]] = []
    for row in sorted(on_node, key=lambda row: (-float(jobs.size[row]), float(jobs.submitted_s[row]), row)):
        place = left.place(jobs.gang_of(row), same_kind)
        if place is None or any(other == node for other, _ in place):
            return None
        elsewhere.append((row, place))
    return Rearrangement(tuple(on_node), tuple(elsewhere), placement)


def _may_go_elsewhere(
    node: int, on_node: Sequence[int], jobs: JobTable, cluster: Occupancy, free: FreeSlots, terms: Terms
) -> bool:
    """Whether enough slots are free on other nodes, and on one of them for the largest job."""
    elsewhere = np.array(free.free)
    elsewhere[node] = 0
    closed = free.closed_to(terms)
    if closed is not None:
        elsewhere[closed] = 0
    sizes = jobs.size[list(on_node)]
    on_one = all(cluster.fits_every_node(jobs.gang_of(row)) for row in on_node)
    return bool(elsewhere.sum() >= sizes.sum() and (elsewhere.max() >= sizes.max() or not on_one))
