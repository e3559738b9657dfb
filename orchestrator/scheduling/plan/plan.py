"""Plans the queue: which jobs start now and where, and which are interrupted. A pure function of a snapshot.

A plan is made in rounds. Each round goes through the waiting jobs once, in the order of the ranking:
1. A gang that fits the free slots starts.
2. A gang that does not fit may take back slots that were lent to others (`lending`), preempt others (`preemption`) that
   may be interrupted for it (`victims`), or have small jobs moved (`defragmentation`).
3. The first gang for which none of this is possible gets a reservation (`reservation`). A later job starts only if it
   ends before the reservation begins, or on other nodes.

If a round has interrupted jobs, another round follows, because they may start elsewhere.

Slots that are left over are lent to elastic jobs (`lending`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.free_slots import Terms
from orchestrator.scheduling.job_table import Rows
from orchestrator.scheduling.plan.decisions import Cause, Plan, Reservation
from orchestrator.scheduling.plan.defragmentation import moves_for
from orchestrator.scheduling.plan.lending import can_take_back, lend, take_back, take_back_within_limit
from orchestrator.scheduling.plan.plan_builder import PlanBuilder
from orchestrator.scheduling.plan.preemption import preemption_for
from orchestrator.scheduling.plan.reservation import reserve
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.scheduling.quota import NOT_ENTITLED, NOWHERE
from orchestrator.scheduling.snapshot import Snapshot


def plan(snapshot: Snapshot, policy: Policy = DEFAULT) -> Plan:
    """Decide what to do now. The snapshot is not changed."""
    if not snapshot.waiting.any() and not snapshot.sizes:
        return Plan(())
    return _Planning(snapshot, policy).run()


class _Planning:
    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._snapshot, self._policy = snapshot, policy
        self._builder = PlanBuilder(snapshot, policy)
        self._reservation: Reservation | None = None
        self._made_room = 0
        self._no_room: set[int] = set()  # keys of jobs for which nothing can be found any more

    def run(self) -> Plan:
        builder, waiting = self._builder, self._snapshot.waiting.nonzero()[0]
        while len(waiting):
            builder.interrupted = []
            started = self._round(waiting)
            if not builder.interrupted or self._nothing_left_for_them:
                break
            # Interrupted jobs may fit elsewhere or preempt others, and other jobs may fit into what they left over.
            self._no_room.clear()
            builder.look_again()
            self._reservation = None
            waiting = np.array([row for row in waiting.tolist() if row not in started] + builder.interrupted, np.intp)
        if self._snapshot.sizes:
            lend(builder, self._terms)
        return Plan(tuple(builder.decisions), self._reservation)

    def _round(self, rows: Rows) -> set[int]:
        """Try to start each of the waiting jobs, in order. Returns the rows that were started."""
        order = self._builder.ranking.order(rows, self._builder.jobs.submitted_s) if len(rows) > 1 else rows
        started: set[int] = set()
        queue = order.tolist()
        keys, yields = self._keys(order)
        distinct = len(set(keys))
        self._builder.limits.keep_nothing()
        for at, row in enumerate(queue):
            if keys[at] in self._no_room:
                continue
            if self._builder.kinds(row) == NOWHERE:
                if self._may_make_room and self._note_room(take_back_within_limit(self._builder, row, self._terms)):
                    started.add(row)
                else:
                    self._builder.limits.keep(self._builder.jobs, row)
                    self._no_room.add(keys[at])
                continue
            if self._start(row, Terms(yields[at])):
                started.add(row)
                continue
            if not self._policy.backfill or self._nothing_left(row):
                break
            self._no_room.add(keys[at])
            if len(self._no_room) >= distinct:
                break
            if self._reserve(row):
                keys, yields = self._keys(order)
                distinct = len(set(keys))
                self._no_room = {keys[at]}
        return started

    def _nothing_left(self, row: int) -> bool:
        """Whether neither this job nor a later one can start: no slot is free, and no job can be interrupted for it."""
        if self._builder.free.total or self._may_need_no_slot:
            return False
        return not self._policy.preemption or self._nobody_makes_way(row)

    @property
    def _nothing_left_for_them(self) -> bool:
        """Whether another round is useless: all slots are held, and the interrupted jobs can preempt none."""
        if self._builder.free.total or self._reservation is not None or self._builder.limits or self._may_need_no_slot:
            return False
        return all(self._nobody_makes_way(row) for row in self._builder.interrupted)

    def _nobody_makes_way(self, row: int) -> bool:
        return self._builder.victims.nobody_yields_to(row) and not can_take_back(self._builder, row)

    @cached_property
    def _may_need_no_slot(self) -> bool:
        return any(not gang.gpus_per_worker for gang in self._builder.jobs.gangs)

    def _keys(self, rows: Rows) -> tuple[list[int], list[bool]]:
        """Return keys of jobs, and whether each yields to the reservation (`Terms.yields`).

        Jobs with the same key ask for the same slots on the same nodes. The first of them goes first, so if it cannot
        start, the others cannot either.
        """
        codes = self._builder.jobs.gang[rows].astype(np.int64)
        if self._builder.limits or self._ranking_is_by_tenant:
            codes = codes * len(self._snapshot.tenants) + self._builder.jobs.tenant[rows]
        if (entitlement := self._builder.ranking.entitlement) is not None:
            codes = codes * (int(entitlement.max()) - NOT_ENTITLED + 1) + entitlement[rows] - NOT_ENTITLED
        yields = self._yields(rows)
        return (codes * 2 + yields).tolist(), yields.tolist()

    @cached_property
    def _ranking_is_by_tenant(self) -> bool:
        return any(tenant.guaranteed for tenant in self._snapshot.tenants)

    def _yields(self, rows: Rows) -> NDArray[np.bool_]:
        """[rows]; whether each would leave the reserved nodes in time: by its end, or because it is preempted."""
        if self._reservation is None:
            return np.zeros(len(rows), bool)
        holder = self._reservation.row
        ends = self._snapshot.now_s + self._snapshot.left_s[rows]
        if self._policy.preemption:
            jobs, victims = self._builder.jobs, self._builder.victims
            may_go = jobs.preemptible[rows] & (jobs.interruptions[rows] < self._policy.most_interruptions)
            may_go &= victims.yields_to(holder)[rows]
            ends = np.where(may_go, np.minimum(ends, self._snapshot.now_s + victims.pause_s[rows]), ends)
        return np.logical_or(ends <= self._reservation.at_s, np.equal(rows, holder))

    def _terms(self, row: int) -> Terms:
        return Terms(bool(self._yields(np.array([row], np.intp))[0]))

    def _start(self, row: int, terms: Terms) -> bool:
        builder = self._builder
        if builder.limits:
            terms = replace(terms, kinds=builder.kinds(row))
        placement = builder.free.place(builder.jobs.gang_of(row), terms)
        if placement is not None:
            builder.put(row, placement)
            return True
        if not self._may_make_room:
            return False
        made = take_back(builder, row, terms) or self._interrupt_for(row, terms)
        return self._note_room(made or builder.rearrange(row, moves_for(builder, row, terms), Cause.MOVED))

    @property
    def _may_make_room(self) -> bool:
        return self._policy.preemption and self._made_room < self._policy.most_preempting

    def _note_room(self, made: bool) -> bool:
        if made:
            self._made_room += 1
            self._no_room.clear()  # more slots may have become free than the job needed
        return made

    def _interrupt_for(self, row: int, terms: Terms) -> bool:
        builder, gang = self._builder, self._builder.jobs.gang_of(row)
        preemption = preemption_for(
            row, gang, builder.jobs, builder.cluster, builder.victims, builder.free.closed_to(terms)
        )
        if preemption is None:
            return False
        for victim in preemption.victims:
            reclaimed = builder.victims.is_reclaimed(victim, row)
            builder.stop(victim, Cause.RECLAIMED if reclaimed else Cause.PREEMPTED, row)
            builder.interrupted.append(victim)
        builder.start(row, preemption.placement)
        return True

    def _reserve(self, row: int) -> bool:
        """Reserve nodes for the first job that must wait. If no slot is free, no later job can start and delay it."""
        if self._reservation is not None or not (self._builder.free.total or self._may_need_no_slot):
            return False
        jobs, now_s, cluster = self._builder.jobs, self._snapshot.now_s, self._builder.cluster
        released_s = now_s + self._snapshot.left_s
        if self._policy.preemption:
            released_s = np.minimum(released_s, self._builder.victims.yields_s(row))
        closed = self._builder.free.closed_to(Terms(kinds=self._builder.kinds(row)))
        may_hold = cluster.may_hold(jobs.gang_of(row))
        open_nodes = may_hold if closed is None else may_hold & ~closed
        self._reservation = reserve(row, jobs, cluster, released_s, now_s, open_nodes)
        if self._reservation is None:
            return False
        self._builder.free.reserve(self._reservation.nodes)
        return True
