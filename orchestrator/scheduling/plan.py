"""One pass over the queue: who starts now, where, and who is interrupted for it. A pure function of a snapshot.

The queue is gone through once, in the order of `standing`:

1. A gang that fits the free slots starts.
2. One that does not may take the place of others, where that is worth what it costs (`victims`), or have small ones
   moved (`moves`).
3. The first one that can do neither gets a reservation (`reserve`); whoever comes after it starts only if it is gone by
   then, or on other nodes.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.free import FreeSlots
from cluster.occupancy import Placement, placement_of
from cluster.resources import Gang
from orchestrator.scheduling.decisions import Cause, Interrupt, Plan, Reservation, Start
from orchestrator.scheduling.moves import moves_for
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.scheduling.quota import Limits
from orchestrator.scheduling.reserve import reserve
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.standing import Standing, standing
from orchestrator.scheduling.table import Floats, Rows
from orchestrator.scheduling.victims import Victims

_PROMISES = 1 << 20  # more than there are promises


def plan(snapshot: Snapshot, policy: Policy = DEFAULT) -> Plan:
    """What is to be done now. The snapshot is not changed."""
    if not snapshot.waiting.any() and not snapshot.windows:
        return Plan(())
    return _Pass(snapshot, policy).run()


class _Pass:
    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._snapshot, self._policy, self._jobs = snapshot, policy, snapshot.jobs
        self._cluster = snapshot.cluster.copy()
        self._free = FreeSlots(self._cluster, snapshot.until_s())
        self._limits = Limits(snapshot)
        self._decisions: list[Interrupt | Start] = []
        self._reservation: Reservation | None = None
        self._interrupted: list[int] = []
        self._made_room = 0
        self._no_room: set[int] = set()  # keys of what can get nothing any more

    @cached_property
    def _standing(self) -> Standing:
        return standing(self._snapshot, self._policy)

    @cached_property
    def _victims(self) -> Victims:
        return Victims(self._snapshot, self._standing, self._cluster, self._policy)

    def run(self) -> Plan:
        if self._snapshot.windows:
            self._clear_for_maintenance()
        waiting = self._snapshot.waiting.nonzero()[0]
        started = self._go_through(waiting, self._policy.preemption)
        if self._interrupted:  # they may fit elsewhere, and others into what is left over
            self._no_room.clear()
            rest = [row for row in waiting.tolist() if row not in started]
            self._go_through(np.array(rest + self._interrupted, np.intp), preempt=False)
        return Plan(tuple(self._decisions), self._reservation)

    def _go_through(self, rows: Rows, preempt: bool) -> set[int]:
        """The rows that were started."""
        order = self._standing.order(rows, self._jobs.submitted_s) if len(rows) > 1 else rows
        started: set[int] = set()
        queue = order.tolist()
        keys, ends_s = self._keys(order)
        distinct = len(set(keys))
        for at, row in enumerate(queue):
            if keys[at] in self._no_room:
                continue
            if self._start(row, ends_s[at] if ends_s else math.inf, preempt):
                started.add(row)
                continue
            if not self._policy.backfill or self._nothing_left(row, preempt):
                break
            free_to_take = int(self._jobs.tenant[row]) not in self._limits.tenants
            if free_to_take:
                self._no_room.add(keys[at])
                if len(self._no_room) >= distinct:
                    break
            if self._reserve(row):
                keys, ends_s = self._keys(order)
                distinct = len(set(keys))
                self._no_room = {keys[at]} if free_to_take else set()
        return started

    def _nothing_left(self, row: int, preempt: bool) -> bool:
        """Whether neither this job nor one that stands behind it can get anything: no slot is free, nobody yields."""
        if self._free.total or self._may_need_no_slot:
            return False
        return not preempt or self._victims.nobody_yields_to(row)

    @cached_property
    def _may_need_no_slot(self) -> bool:
        return any(not gang.gpus_per_worker for gang in self._jobs.gangs)

    def _keys(self, rows: Rows) -> tuple[list[int], list[float]]:
        """Keys and ends of jobs; no ends where nothing is promised to anybody.

        Jobs with one key ask for the same slots, on nodes that are promised to others equally late.
        """
        codes = self._jobs.gang[rows].astype(np.int64) * _PROMISES
        if not self._free.promises:
            return codes.tolist(), []
        ends_s = self._ends_s(rows)
        return (codes + np.searchsorted(self._free.promises, ends_s, side="left")).tolist(), ends_s.tolist()

    def _ends_s(self, rows: Rows) -> Floats:
        """[rows]; by when they are gone if need be: at the end of their time, or when they may be interrupted."""
        ends: Floats = self._snapshot.now_s + self._snapshot.left_s[rows]
        if self._policy.preemption:
            may_go = self._jobs.preemptible[rows] & (self._jobs.interruptions[rows] < self._policy.most_interruptions)
            if self._reservation is not None:
                holder = self._reservation.row
                worth = self._standing.index[rows] > self._policy.margin * self._standing.index[holder]
                may_go &= worth | (self._standing.level[rows] < self._standing.level[holder])
            ends = np.where(may_go, np.minimum(ends, self._snapshot.now_s + self._policy.protected_s), ends)
        return ends

    def _start(self, row: int, ends_s: float, preempt: bool) -> bool:
        for gang in self._limits.gangs(self._jobs, row):
            placement = self._free.place(gang, ends_s)
            if placement is not None:
                self._put(row, placement)
                return True
            if preempt and self._made_room < self._policy.most_preempting and self._make_room(row, gang, ends_s):
                return True
        return False

    def _put(self, row: int, placement: Placement) -> None:
        self._cluster.hold(row, self._jobs.gang_of(row), placement)
        self._limits.take(self._jobs, row, int(self._cluster.kinds[placement[0][0]]))
        self._decisions.append(Start(row, placement))

    def _make_room(self, row: int, gang: Gang, ends_s: float) -> bool:
        barred = self._free.promised_before(ends_s) if self._free.promises else None
        room = self._victims.room_for(row, gang, barred)
        if room is not None:
            for victim in room.victims:
                self._interrupt(victim, self._cause(row, victim), row)
            self._free.take(gang, room.placement)
            self._put(row, room.placement)
        elif not self._move(row, gang, barred):
            return False
        self._made_room += 1
        self._no_room.clear()  # more may have come free than was needed
        return True

    def _move(self, row: int, gang: Gang, barred: NDArray[np.bool_] | None) -> bool:
        moved = moves_for(row, gang, self._jobs, self._cluster, self._victims, self._policy, self._free.total, barred)
        if moved is None:
            return False
        for victim in moved.victims:
            self._interrupt(victim, Cause.MOVED, row)
            self._interrupted.remove(victim)
        self._free.take(gang, moved.placement)
        self._put(row, moved.placement)
        for victim, placement in moved.elsewhere:
            self._free.take(self._jobs.gang_of(victim), placement)
            self._put(victim, placement)
        return True

    def _interrupt(self, row: int, cause: Cause, for_row: int | None) -> None:
        gang = self._jobs.gang_of(row)
        placement = placement_of(row, gang, self._cluster)
        self._cluster.release(row, gang, placement)
        self._free.give(gang, placement)
        self._limits.take(self._jobs, row, int(self._cluster.kinds[placement[0][0]]), sign=-1)
        self._victims.gone(row)
        self._interrupted.append(row)
        self._decisions.append(Interrupt(row, cause, for_row))

    def _cause(self, row: int, victim: int) -> Cause:
        entitled = self._standing.entitled
        return Cause.RECLAIMED if entitled is not None and entitled[row] > entitled[victim] else Cause.PREEMPTED

    def _reserve(self, row: int) -> bool:
        """For the first that must wait. Where nothing is free there is nothing to keep others from."""
        if self._reservation is not None or not self._free.total:
            return False
        released = self._released_s(row)
        self._reservation = reserve(row, self._jobs.gang_of(row), self._cluster, released, self._snapshot.now_s)
        if self._reservation is None:
            return False
        self._free.promise(self._reservation.nodes, self._reservation.at_s)
        return True

    def _released_s(self, row: int) -> Floats:
        """[rows]; when each job gives its slots back for this one: at its end, or when it may be interrupted."""
        ends: Floats = self._snapshot.now_s + self._snapshot.left_s
        if self._policy.preemption:
            index, level = self._standing.index, self._standing.level
            yields = (self._victims.worth > self._policy.margin * index[row]) & (level == level[row])
            yields = self._victims.movable & (yields | (level < level[row]))
            ends = np.where(yields, np.minimum(ends, self._victims.protected_until_s), ends)
        return ends

    def _clear_for_maintenance(self) -> None:
        """Interrupt what may be interrupted on nodes whose maintenance has begun."""
        closed = np.isneginf(self._free.until_s)
        on_them = np.unique(self._cluster.slots[closed])
        for row in on_them[on_them >= 0].tolist():
            if self._snapshot.running[row] and self._jobs.preemptible[row]:
                self._interrupt(row, Cause.MAINTENANCE, None)
