"""Why a job waits: what it asks for, what is free, who holds the rest, and which jobs go first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cluster.capacity.free_slots import FreeSlots, Terms
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import FOREIGN
from orchestrator.scheduling.job_table import HELD, RUNNING
from orchestrator.scheduling.plan.reservation import reserve
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import NOWHERE, Limits
from orchestrator.scheduling.ranking import Ranking, ranking
from orchestrator.scheduling.snapshot import Snapshot


class Before(StrEnum):
    """Why another job goes first."""

    GUARANTEE = "within its tenant's guarantee"
    PRIORITY = "a higher priority"
    WAITED = "has waited longest"
    SCORE = "expected to take less, for its size and its tenant's share"
    SUBMITTED = "submitted earlier"


class Obstacle(StrEnum):
    """What keeps the job from starting now."""

    NONE = "nothing keeps it, and it starts within seconds"
    RUNS = "it runs already"
    HELD = "it is paused"
    AFTER = "it waits for the end of other jobs"
    EARLY = "it may not start yet"
    LIMIT = "its tenant's limit is reached"
    CLOSED = "the machines that have room take nothing new"
    FULL = "too little is free"
    SCATTERED = "enough is free, but not together"
    BEHIND = "jobs before it take what is free"


@dataclass(frozen=True)
class NodeUse:
    """A node that fits the job's gang, and who holds its slots."""

    node: int
    size: int  # GPUs, or CPUs for a gang that needs no GPU
    free: int
    usable: bool
    foreign: int  # slots held outside Fleetune
    holders: tuple[tuple[int, int, float | None], ...]  # (row, slots on this node, its end; None: unknown)


@dataclass(frozen=True)
class Why:
    """All that is known about one waiting job. Rows and nodes are the snapshot's; times are on its clock."""

    row: int
    gang: Gang
    obstacle: Obstacle
    waited_s: float
    after: tuple[int, ...]  # rows of jobs that must end first
    not_before_s: float  # -inf: no earliest start
    free: int  # free slots on usable nodes that fit
    most_on_one: int  # free slots on the one node that has most
    nodes: tuple[NodeUse, ...]  # nodes that fit
    before: tuple[tuple[int, Before], ...]  # rows of jobs that go first, and why
    room_at_s: float | None  # when it would fit if no job went before it; None: unknown
    room_on: tuple[int, ...]


def why(snapshot: Snapshot, policy: Policy, row: int) -> Why:
    """Explain why one job of a snapshot waits. `expected_start` says until when."""
    ranks = ranking(snapshot, policy)
    gang = snapshot.jobs.gang_of(row)
    nodes = _nodes(snapshot, gang)
    waits = bool(snapshot.waiting[row])
    before = _before(snapshot, ranks, row) if waits else ()
    room_at_s, room_on = _room(snapshot, row, gang) if waits else (None, ())
    usable = [node for node in nodes if node.usable]
    closed = sum(node.free for node in nodes if not node.usable)
    free, most = sum(node.free for node in usable), max((node.free for node in usable), default=0)
    return Why(
        row=row,
        gang=gang,
        obstacle=_obstacle(snapshot, row, gang, free, closed, bool(before)),
        waited_s=float(ranks.waited_s[row]),
        after=snapshot.parents.get(row, ()),
        not_before_s=float(snapshot.jobs.not_before_s[row]),
        free=free,
        most_on_one=most,
        nodes=nodes,
        before=before,
        room_at_s=room_at_s,
        room_on=room_on,
    )


def _nodes(snapshot: Snapshot, gang: Gang) -> tuple[NodeUse, ...]:
    cluster, ends = snapshot.cluster, snapshot.ends_s
    found = []
    for node in range(len(cluster.names)):
        right_type = gang.accelerator_type in (None, cluster.types[cluster.kinds[node]])
        if not right_type or (gang.gpus_per_worker and not cluster.has_gpus[node]):
            continue
        line = cluster.slots[node]
        rows, counts = np.unique(line[line >= 0], return_counts=True)
        holders = tuple(
            (row, count, float(ends[row]) if math.isfinite(ends[row]) else None)
            for row, count in zip(rows.tolist(), counts.tolist(), strict=True)
        )
        foreign = int((line == FOREIGN).sum())
        size, free, usable = int(cluster.sizes[node]), int(cluster.free[node]), bool(cluster.usable[node])
        if not gang.gpus_per_worker:
            size, free = int(cluster.cpus[node]), int(cluster.cpus_free[node])
        found.append(NodeUse(node, size, free, usable, foreign, holders))
    return tuple(found)


def _before(snapshot: Snapshot, ranks: Ranking, row: int) -> tuple[tuple[int, Before], ...]:
    order = ranks.order(snapshot.waiting.nonzero()[0], snapshot.jobs.submitted_s).tolist()
    return tuple((other, _reason(ranks, other, row)) for other in order[: order.index(row)])


def _reason(ranks: Ranking, other: int, row: int) -> Before:
    if ranks.is_entitled(other) and not ranks.is_entitled(row):
        return Before.GUARANTEE
    if ranks.priority_class[other] > ranks.priority_class[row]:
        return Before.PRIORITY
    if ranks.score[other] < ranks.score[row]:
        return Before.WAITED if ranks.guarded is not None and ranks.guarded[other] else Before.SCORE
    return Before.SUBMITTED


def _room(snapshot: Snapshot, row: int, gang: Gang) -> tuple[float | None, tuple[int, ...]]:
    ends, cluster = snapshot.ends_s, snapshot.cluster
    found = reserve(row, snapshot.jobs, cluster, ends, snapshot.now_s, cluster.may_hold(gang))
    if found is None:
        return None, ()
    slots = cluster.slots[list(found.nodes)]
    others = [one for one, places in cluster.without_slots.items() if any(node in found.nodes for node, _ in places)]
    known = np.isfinite(ends[[*slots[slots >= 0].tolist(), *others]]).all() and not (slots == FOREIGN).any()
    return (found.at_s if known or found.at_s > snapshot.now_s else None), found.nodes


def _obstacle(snapshot: Snapshot, row: int, gang: Gang, free: int, closed: int, behind: bool) -> Obstacle:
    state, size = int(snapshot.jobs.state[row]), int(snapshot.jobs.size[row])
    if state == RUNNING:
        return Obstacle.RUNS
    if state == HELD:
        return Obstacle.AFTER if row in snapshot.parents else Obstacle.HELD
    if not snapshot.waiting[row]:
        return Obstacle.EARLY
    kinds = Limits(snapshot).kinds(snapshot.jobs, row)
    if kinds == NOWHERE:
        return Obstacle.LIMIT
    if free < size:
        return Obstacle.CLOSED if free + closed >= size else Obstacle.FULL
    if FreeSlots(snapshot.cluster).place(gang) is None:
        return Obstacle.SCATTERED
    if FreeSlots(snapshot.cluster).place(gang, Terms(kinds=kinds)) is None:
        return Obstacle.LIMIT  # that of the type of the nodes with room
    return Obstacle.BEHIND if behind else Obstacle.NONE
