"""One pass over the queue: who starts now, where, and who is interrupted for it. A pure function of a snapshot.

The queue is gone through once, in the order of `standing`:

1. A gang that fits the free slots starts.
2. One that does not may take the place of others (`room`), where they make way for it (`victims`), or have small ones
   go on with fewer workers (`resize`) or be moved (`moves`).
3. The first one that can do neither gets a reservation (`reserve`); whoever comes after it starts only if it is gone by
   then, or on other nodes.

What is left over goes to elastic jobs, which start with as many workers as they can have, and to running ones that it
is worth while for if nobody waits any more.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from cluster.free import ANYWHERE, FreeSlots, Terms
from cluster.occupancy import Occupancy, Placement, placement_of, workers_in
from cluster.resources import Gang
from orchestrator.scheduling.decisions import Cause, Interrupt, Plan, Reservation, Start
from orchestrator.scheduling.moves import Moved, moves_for
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.scheduling.quota import NOWHERE, Limits
from orchestrator.scheduling.reserve import reserve
from orchestrator.scheduling.resize import is_whole, is_worth_growing, shrink_for, shrink_own, shrinkable
from orchestrator.scheduling.room import room_for
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.standing import Standing, standing
from orchestrator.scheduling.table import Floats, Rows
from orchestrator.scheduling.victims import Victims

_REPLACED = Start(-1, ())
_FEW = 8  # holding more is quicker all at once
_TIMES = 1 << 12  # more than there are distinct reservations or closings


def plan(snapshot: Snapshot, policy: Policy = DEFAULT) -> Plan:
    """What is to be done now. The snapshot is not changed."""
    if not snapshot.waiting.any() and not snapshot.windows and not snapshot.sizes:
        return Plan(())
    return _Pass(snapshot, policy).run()


class _Pass:
    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._snapshot, self._policy, self._jobs = snapshot, policy, snapshot.jobs
        self._sizes = snapshot.sizes
        self._free = FreeSlots(snapshot.cluster, snapshot.closes_s())
        self._changed: Occupancy | None = None
        self._held: list[tuple[int, Gang, Placement]] = []  # started, and not yet in `_changed`
        self._limits = Limits(snapshot)
        self._decisions: list[Interrupt | Start] = []
        self._reservation: Reservation | None = None
        self._interrupted: list[int] = []  # and not started again
        self._made_room = 0
        self._no_room: set[int] = set()  # keys of what can get nothing any more

    @property
    def _cluster(self) -> Occupancy:
        """Who holds what after the decisions so far. Most plans never ask."""
        if self._changed is None:
            self._changed = self._snapshot.cluster.copy()
        if len(self._held) > _FEW:
            self._changed.hold_all(self._held)
        else:
            for row, gang, placement in self._held:
                self._changed.hold(row, gang, placement)
        self._held = []
        return self._changed

    @cached_property
    def _standing(self) -> Standing:
        return standing(self._snapshot, self._policy)

    @cached_property
    def _victims(self) -> Victims:
        return Victims(self._snapshot, self._standing, self._policy)

    def run(self) -> Plan:
        waiting = self._snapshot.waiting.nonzero()[0]
        if self._free.closings:
            self._clear_for_maintenance()
            waiting = np.append(waiting, self._interrupted).astype(np.intp)
        while len(waiting):
            before = len(self._decisions)
            self._interrupted = []
            started = self._go_through(waiting)
            if not self._interrupted or len(self._decisions) == before or self._nothing_left_for_them:
                break
            # They may fit elsewhere or make others yield, and others may fit into what is left over.
            self._no_room.clear()
            self._free, self._reservation = FreeSlots(self._cluster, self._snapshot.closes_s()), None
            waiting = np.array([row for row in waiting.tolist() if row not in started] + self._interrupted, np.intp)
        if self._sizes:
            self._grow()
        return Plan(tuple(self._decisions), self._reservation)

    def _go_through(self, rows: Rows) -> set[int]:
        """The rows that were started."""
        order = self._standing.order(rows, self._jobs.submitted_s) if len(rows) > 1 else rows
        started: set[int] = set()
        queue = order.tolist()
        keys, yields_s, leaves_s = self._keys(order)
        distinct = len(set(keys))
        at_limit: set[int] = set()  # tenants of which a job waits for their limit: their later ones do not pass it
        for at, row in enumerate(queue):
            if keys[at] in self._no_room or (at_limit and int(self._jobs.tenant[row]) in at_limit):
                continue
            if self._limits and self._limits.kinds(self._jobs, row) == NOWHERE:
                if self._shrink_own(row):
                    started.add(row)
                else:
                    at_limit.add(int(self._jobs.tenant[row]))
                continue
            if self._start(row, Terms(yields_s[at], leaves_s[at]) if yields_s else ANYWHERE):
                started.add(row)
                continue
            if not self._policy.backfill or self._nothing_left(row):
                break
            self._no_room.add(keys[at])
            if len(self._no_room) >= distinct:
                break
            if self._reserve(row):
                keys, yields_s, leaves_s = self._keys(order)
                distinct = len(set(keys))
                self._no_room = {keys[at]}
        return started

    def _nothing_left(self, row: int) -> bool:
        """Whether neither this job nor one that stands behind it can get anything: no slot is free, nobody yields."""
        if self._free.total or self._may_need_no_slot:
            return False
        return not self._policy.preemption or (self._victims.nobody_yields_to(row) and not self._shrinkable(row))

    @property
    def _nothing_left_for_them(self) -> bool:
        """Whether going through the queue again finds nothing: all slots are held, and who was stopped stops nobody."""
        if self._free.total or self._reservation is not None or self._limits or self._may_need_no_slot:
            return False
        return not any(not self._victims.nobody_yields_to(row) or self._shrinkable(row) for row in self._interrupted)

    def _shrinkable(self, row: int) -> bool:
        return bool(self._sizes and shrinkable(row, self._jobs, self._sizes, self._victims))

    @cached_property
    def _may_need_no_slot(self) -> bool:
        return any(not gang.gpus_per_worker for gang in self._jobs.gangs)

    def _keys(self, rows: Rows) -> tuple[list[int], list[float], list[float]]:
        """Keys of jobs, and their terms: yields_s and leaves_s; none where nothing is reserved and no node closes.

        Jobs with one key ask for the same slots on the same nodes, and the first of them goes before the others: what
        it does not get they do not get either.
        """
        codes = self._jobs.gang[rows].astype(np.int64)
        if self._limits or self._standing_is_by_tenant:
            codes = codes * len(self._snapshot.tenants) + self._jobs.tenant[rows]
        if self._standing_is_by_tenant:
            codes = codes * 2 + [self._standing.is_entitled(row) for row in rows.tolist()]
        if not (self._free.reservations or self._free.closings):
            return codes.tolist(), [], []
        yields_s, leaves_s = self._yields_s(rows), self._snapshot.leaves_s(rows, self._policy.protected_s)
        codes = codes * _TIMES + np.searchsorted(self._free.reservations, yields_s, side="left")
        codes = codes * _TIMES + np.searchsorted(self._free.closings, leaves_s, side="left")
        return codes.tolist(), yields_s.tolist(), leaves_s.tolist()

    @cached_property
    def _standing_is_by_tenant(self) -> bool:
        return any(tenant.guaranteed for tenant in self._snapshot.tenants)

    def _yields_s(self, rows: Rows) -> Floats:
        """[rows]; when each would be gone from nodes reserved for another: at its end, or when it would make way."""
        ends: Floats = self._snapshot.now_s + self._snapshot.left_s[rows]
        if self._reservation is None:
            return ends
        holder = self._reservation.row
        if self._policy.preemption:
            may_go = self._jobs.preemptible[rows] & (self._jobs.interruptions[rows] < self._policy.most_interruptions)
            may_go &= self._victims.stands_behind(rows, holder)
            pauses = self._snapshot.now_s + self._victims.pause_s[rows]
            ends = np.where(may_go, np.minimum(ends, pauses), ends)
        ends[rows == holder] = self._snapshot.now_s
        return ends

    def _start(self, row: int, terms: Terms) -> bool:
        gang = self._jobs.gang_of(row)
        if self._limits:
            terms = replace(terms, kinds=self._limits.kinds(self._jobs, row))
        placement = self._free.place(gang, terms)
        if placement is not None:
            self._put(row, placement)
            return True
        if not self._policy.preemption or self._made_room >= self._policy.most_preempting:
            return False
        return self._shrink(row, gang, terms) or self._make_room(row, gang, terms)

    def _put(self, row: int, placement: Placement) -> None:
        self._held.append((row, self._jobs.gang_of(row), placement))
        if self._limits:
            self._limits.take(self._jobs, row, int(self._snapshot.cluster.kinds[placement[0][0]]))
        self._decisions.append(Start(row, placement))

    def _make_room(self, row: int, gang: Gang, terms: Terms) -> bool:
        room = room_for(row, gang, self._jobs, self._cluster, self._victims, self._free.closed_to(terms))
        if room is not None:
            for victim in room.victims:
                self._interrupt(victim, self._cause(row, victim), row)
                self._interrupted.append(victim)
            self._free.take(gang, room.placement)
            self._put(row, room.placement)
        elif not self._move(row, gang, terms):
            return False
        self._made_room += 1
        self._no_room.clear()  # more may have come free than was needed
        return True

    def _move(self, row: int, gang: Gang, terms: Terms) -> bool:
        moved = moves_for(row, gang, self._jobs, self._cluster, self._free, self._victims, self._policy, terms)
        if moved is not None:
            self._rearrange(row, gang, moved, Cause.MOVED)
        return moved is not None

    def _shrink(self, row: int, gang: Gang, terms: Terms) -> bool:
        if not self._sizes:
            return False
        moved = shrink_for(
            row, gang, self._jobs, self._sizes, self._cluster, self._free, self._victims, self._policy, terms
        )
        if moved is None:
            return False
        self._rearrange(row, gang, moved, Cause.RESIZED)
        self._made_room += 1
        self._no_room.clear()
        return True

    def _shrink_own(self, row: int) -> bool:
        """For a job that waits for the limit of its tenant: what was lent to another one of the same tenant."""
        if not self._sizes or not self._policy.preemption or self._made_room >= self._policy.most_preempting:
            return False
        jobs, gang = self._jobs, self._jobs.gang_of(row)
        for victim in shrinkable(row, jobs, self._sizes, self._victims):
            if jobs.tenant[victim] != jobs.tenant[row]:
                continue
            kinds = self._kinds_if_shrunk(row, victim)
            if kinds == NOWHERE:
                continue
            _, yields_s, leaves_s = self._keys(np.array([row], np.intp))
            terms = Terms(yields_s[0], leaves_s[0], kinds) if yields_s else Terms(kinds=kinds)
            moved = shrink_own(
                row, victim, gang, self._jobs, self._sizes, self._cluster, self._free, self._policy, terms
            )
            if moved is not None:
                self._rearrange(row, gang, moved, Cause.RESIZED)
                self._made_room += 1
                self._no_room.clear()
                return True
        return False

    def _kinds_if_shrunk(self, row: int, victim: int) -> frozenset[int] | None:
        """Where the limit of its tenant would let a job go once another one has its fewest workers."""
        placement = placement_of(victim, self._jobs.gang_of(victim), self._cluster)
        if not placement:
            return NOWHERE
        kind, held = int(self._snapshot.cluster.kinds[placement[0][0]]), self._jobs.gang_of(victim).num_workers
        self._limits.take(self._jobs, victim, kind, sign=-1)
        self._with_workers(victim, self._sizes[victim][0])
        self._limits.take(self._jobs, victim, kind)
        kinds = self._limits.kinds(self._jobs, row)
        self._limits.take(self._jobs, victim, kind, sign=-1)
        self._with_workers(victim, held)
        self._limits.take(self._jobs, victim, kind)
        return kinds

    def _rearrange(self, row: int, gang: Gang, moved: Moved, cause: Cause) -> None:
        after = {victim: workers_in(placement) for victim, placement in moved.elsewhere}
        for victim in moved.victims:
            same = after[victim] == self._jobs.gang_of(victim).num_workers
            self._interrupt(victim, Cause.MOVED if same else cause, row)
        self._free.take(gang, moved.placement)
        self._put(row, moved.placement)
        for victim, placement in moved.elsewhere:
            self._free.take(self._with_workers(victim, workers_in(placement)), placement)
            self._put(victim, placement)

    def _with_workers(self, row: int, num_workers: int) -> Gang:
        """The gang of a job that gets so many. The snapshot's own table stays as it is."""
        gang = self._jobs.gang_of(row)
        if gang.num_workers == num_workers:
            return gang
        if self._jobs is self._snapshot.jobs:
            self._jobs = self._jobs.copy()
        return self._jobs.resize(row, num_workers)

    def _grow(self) -> None:
        """Give what is left over to elastic jobs: first to those that start, then to those that run."""
        waits, limited = self._who_waits()
        tenant = self._jobs.tenant
        for at, start in enumerate(list(self._decisions)):
            elastic = isinstance(start, Start) and start.row in self._sizes and int(tenant[start.row]) not in limited
            if elastic and self._put_larger(start.row, start.placement):  # type: ignore[union-attr]
                self._decisions[at] = _REPLACED
        self._decisions = [one for one in self._decisions if one is not _REPLACED]
        if waits or not self._snapshot.grows or not self._policy.preemption:
            return
        for row in [row for row in self._victims.may_grow(self._sizes) if int(tenant[row]) not in limited]:
            at, placement = len(self._decisions), placement_of(row, self._jobs.gang_of(row), self._cluster)
            if self._put_larger(row, placement, runs=True):
                self._decisions.insert(at, Interrupt(row, Cause.RESIZED, None))

    def _who_waits(self) -> tuple[bool, set[int]]:
        """Whether anybody still waits for room, and the tenants of those who wait for their limit."""
        started = {one.row for one in self._decisions if isinstance(one, Start)}
        rows = self._snapshot.waiting.nonzero()[0].tolist()
        rows += [one.row for one in self._decisions if isinstance(one, Interrupt)]
        left = [row for row in rows if row not in started]
        at_limit = [row for row in left if self._limits and self._limits.kinds(self._jobs, row) == NOWHERE]
        return len(left) > len(at_limit), {int(self._jobs.tenant[row]) for row in at_limit}

    def _put_larger(self, row: int, placement: Placement, runs: bool = False) -> bool:
        """Place a job anew with as many workers as it can get, if these are more; else all stays as it was."""
        gang = self._jobs.gang_of(row)
        if not is_whole(placement, gang):
            return False
        kind = int(self._snapshot.cluster.kinds[placement[0][0]])
        self._cluster.release(row, gang, placement)
        self._free.give(gang, placement)
        self._limits.take(self._jobs, row, kind, sign=-1)
        _, yields_s, leaves_s = self._keys(np.array([row], np.intp))
        terms = Terms(yields_s[0], leaves_s[0]) if yields_s else ANYWHERE
        for size in [size for size in reversed(self._sizes[row]) if size > gang.num_workers]:
            if runs and not is_worth_growing(row, size, self._snapshot, self._policy):
                break
            larger = self._with_workers(row, size)
            kinds = self._limits.kinds(self._jobs, row) if self._limits else None
            same_kind = frozenset({kind}) if kinds is None or kind in kinds else NOWHERE
            found = self._free.place(larger, replace(terms, kinds=same_kind))
            if found is not None:
                self._put(row, found)
                return True
        self._with_workers(row, gang.num_workers)
        self._free.take(gang, placement)
        self._cluster.hold(row, gang, placement)
        self._limits.take(self._jobs, row, kind)
        return False

    def _interrupt(self, row: int, cause: Cause, for_row: int | None) -> None:
        gang = self._jobs.gang_of(row)
        cluster = self._cluster
        placement = placement_of(row, gang, cluster)
        cluster.release(row, gang, placement)
        self._free.give(gang, placement)
        self._limits.take(self._jobs, row, int(cluster.kinds[placement[0][0]]), sign=-1)
        self._victims.gone(row)
        if row in self._sizes:
            self._with_workers(row, self._sizes[row][0])
        self._decisions.append(Interrupt(row, cause, for_row))

    def _cause(self, row: int, victim: int) -> Cause:
        return Cause.RECLAIMED if self._victims.is_reclaimed(victim, row) else Cause.PREEMPTED

    def _reserve(self, row: int) -> bool:
        """For the first that must wait. Where nothing is free there is nothing to keep others from."""
        if self._reservation is not None or not (self._free.total or self._may_need_no_slot):
            return False
        gang, now_s, cluster = self._jobs.gang_of(row), self._snapshot.now_s, self._cluster
        kinds = self._limits.kinds(self._jobs, row) if self._limits else None
        released_s: Floats = now_s + self._snapshot.left_s
        if self._policy.preemption:
            released_s = np.minimum(released_s, self._victims.yields_s(row))
        leaves_s = float(self._snapshot.leaves_s(np.array([row]), self._policy.protected_s)[0])
        closed = self._free.closed_to(Terms(leaves_s=leaves_s, kinds=kinds))
        fits = cluster.fits(gang)
        open_nodes = fits if closed is None else fits & ~closed
        self._reservation = reserve(row, gang, cluster, released_s, now_s, open_nodes)
        if self._reservation is None:
            return False
        self._free.reserve(self._reservation.nodes, self._reservation.at_s)
        return True

    def _clear_for_maintenance(self) -> None:
        """Interrupt what may be interrupted on nodes whose maintenance has begun."""
        closes_s = self._snapshot.closes_s()
        on_them = np.unique(self._cluster.slots[np.isneginf(np.array(closes_s))])
        for row in on_them[on_them >= 0].tolist():
            if self._snapshot.running[row] and self._jobs.preemptible[row]:
                self._interrupt(row, Cause.MAINTENANCE, None)
                self._interrupted.append(row)
