"""Lending: slots that are left over go to elastic jobs, which grow, and are taken back for gangs that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cluster.capacity.free_slots import FreeSlots, Terms
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Placement, placement_of, workers_in
from orchestrator.scheduling.job_table import JobTable
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Rearrangement, Start
from orchestrator.scheduling.plan.plan_builder import PlanBuilder
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import NOWHERE
from orchestrator.scheduling.snapshot import Snapshot

TermsOf = Callable[[int], Terms]  # the terms of a row, without the limit of its tenant

_REPLACED = Start(-1, ())
_TRIED = 8  # number of jobs that are tried


def can_take_back(builder: PlanBuilder, row: int) -> bool:
    """Whether a running job can shrink for this one."""
    return bool(builder.snapshot.sizes and shrinkable(builder, row))


def take_back(builder: PlanBuilder, row: int, terms: Terms) -> bool:
    """Start a job on slots that were lent to others, if shrinking these frees enough. Returns whether it was started.

    It may cost `move_worth_s` of the gang's own slots. The others stay on nodes of the kind that they are on, and move
    to no node that is reserved.
    """
    sizes = builder.snapshot.sizes
    if not sizes or builder.policy.move_worth_s <= 0:
        return False
    groups = [group for group in _groups(shrinkable(builder, row)[:_TRIED]) if _is_worth(builder, row, group)]
    found = (_try(builder, row, group, sizes, terms) for group in groups)
    return builder.rearrange(row, next((moved for moved in found if moved is not None), None), Cause.RESIZED)


def take_back_within_limit(builder: PlanBuilder, row: int, terms_of: TermsOf) -> bool:
    """Start a job that its tenant's limit holds back, by shrinking another job of the same tenant."""
    sizes, tenant = builder.snapshot.sizes, builder.jobs.tenant
    for victim in shrinkable(builder, row) if sizes else ():
        kinds = _kinds_if_shrunk(builder, row, victim) if tenant[victim] == tenant[row] else NOWHERE
        if kinds == NOWHERE or not _is_worth(builder, row, (victim,)):
            continue
        terms = replace(terms_of(row), kinds=kinds)
        moved = _try(builder, row, (victim,), {victim: sizes[victim][:1]}, terms)  # to its fewest workers
        if builder.rearrange(row, moved, Cause.RESIZED):
            return True
    return False


def lend(builder: PlanBuilder, terms_of: TermsOf) -> None:
    """Lend free slots to elastic jobs: first to those that start, then, if no job waits, to those that run."""
    sizes, tenant = builder.snapshot.sizes, builder.jobs.tenant
    waits, limited = _who_waits(builder)
    starts = [(at, one) for at, one in enumerate(builder.decisions) if isinstance(one, Start) and one.row in sizes]
    for at, start in starts:
        if int(tenant[start.row]) not in limited and _put_larger(builder, start.row, start.placement, terms_of):
            builder.decisions[at] = _REPLACED
    builder.decisions = [one for one in builder.decisions if one is not _REPLACED]
    if waits or not builder.snapshot.grows or not builder.policy.preemption:
        return
    for row in [row for row in builder.victims.may_grow(sizes) if int(tenant[row]) not in limited]:
        at, placement = len(builder.decisions), placement_of(row, builder.jobs.gang_of(row), builder.cluster)
        if _put_larger(builder, row, placement, terms_of, runs=True):
            builder.decisions.insert(at, Interrupt(row, Cause.RESIZED, None))


def _kinds_if_shrunk(builder: PlanBuilder, row: int, victim: int) -> frozenset[int] | None:
    """Return the kinds of nodes that the tenant's limit would allow if another job had its fewest workers."""
    placement = placement_of(victim, builder.jobs.gang_of(victim), builder.cluster)
    if not placement:
        return NOWHERE
    kind, held = builder.kind_of(placement), builder.jobs.gang_of(victim).num_workers
    builder.limits.take(builder.jobs, victim, kind, sign=-1)
    builder.with_workers(victim, builder.snapshot.sizes[victim][0])
    builder.limits.take(builder.jobs, victim, kind)
    kinds = builder.kinds(row)
    builder.limits.take(builder.jobs, victim, kind, sign=-1)
    builder.with_workers(victim, held)
    builder.limits.take(builder.jobs, victim, kind)
    return kinds


def _who_waits(builder: PlanBuilder) -> tuple[bool, set[int]]:
    """Return whether a job still waits for jobs to end, and the tenants that have a job waiting for their limit."""
    started = {one.row for one in builder.decisions if isinstance(one, Start)}
    rows = builder.snapshot.waiting.nonzero()[0].tolist()
    rows += [one.row for one in builder.decisions if isinstance(one, Interrupt)]
    left = [row for row in rows if row not in started]
    at_limit = {row for row in left if builder.kinds(row) == NOWHERE}
    waits = _any_fits_without_jobs(builder, [row for row in left if row not in at_limit])
    return waits, {int(builder.jobs.tenant[row]) for row in at_limit}


def _any_fits_without_jobs(builder: PlanBuilder, rows: Sequence[int]) -> bool:
    """Whether one of these jobs would have room if no job ran. Others wait for nodes that are not there."""
    if not rows:
        return False
    snapshot = builder.snapshot
    empty = snapshot.cluster.copy()
    for row in snapshot.running.nonzero()[0].tolist():
        gang = snapshot.jobs.gang_of(row)
        empty.release(row, gang, placement_of(row, gang, snapshot.cluster))
    free = FreeSlots(empty)
    return any(free.place(gang) is not None for gang in {builder.jobs.gang_of(row) for row in rows})


def _put_larger(builder: PlanBuilder, row: int, placement: Placement, terms_of: TermsOf, runs: bool = False) -> bool:
    """Place a job again with more workers, as many as possible; if it cannot have more, nothing changes."""
    gang, sizes = builder.jobs.gang_of(row), builder.snapshot.sizes[row]
    if not is_whole(placement, gang):
        return False
    kind = builder.kind_of(placement)
    builder.let_go(row, placement)
    terms = terms_of(row)
    for size in [size for size in reversed(sizes) if size > gang.num_workers]:
        if runs and not is_worth_growing(row, size, builder.snapshot, builder.policy):
            break
        larger, kinds = builder.with_workers(row, size), builder.kinds(row)
        same_kind = frozenset({kind}) if kinds is None or kind in kinds else NOWHERE
        found = builder.free.place(larger, replace(terms, kinds=same_kind))
        if found is not None:
            builder.put(row, found)
            return True
    builder.hold_again(row, placement)
    return False


def shrinkable(builder: PlanBuilder, row: int) -> list[int]:
    """Return running jobs that can shrink for this one: the cheapest first, of equals the largest."""
    jobs, sizes, may = builder.jobs, builder.snapshot.sizes, builder.victims.shrinkable_for(row)
    found = [one for one in sizes if may[one] and jobs.gang_of(one).num_workers > sizes[one][0]]
    return sorted(found, key=lambda one: (_cost(one, jobs), -float(jobs.size[one]), float(jobs.submitted_s[one]), one))


def is_worth_growing(row: int, num_workers: int, snapshot: Snapshot, policy: Policy) -> bool:
    """Whether more workers end a running job so much earlier that the interruption pays.

    Speed is taken to be proportional to the number of workers.
    """
    now = snapshot.jobs.gang_of(row).num_workers
    saved_s = float(snapshot.left_s[row]) * (1.0 - now / num_workers)
    return saved_s > policy.grow_worth * float(snapshot.jobs.interruption_cost_s[row])


def is_whole(placement: Placement, gang: Gang) -> bool:
    """Whether a placement holds all workers of a gang.

    It does not if a node of the gang is not seen at the moment.
    """
    return workers_in(placement) == gang.num_workers


def _cost(row: int, jobs: JobTable) -> float:
    """Cost of an interruption in GPU-seconds."""
    return float(jobs.interruption_cost_s[row] * jobs.size[row])


def _groups(rows: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield each job alone, then growing groups of the first jobs."""
    yield from ((row,) for row in rows)
    yield from (tuple(rows[:count]) for count in range(2, len(rows) + 1))


def _is_worth(builder: PlanBuilder, row: int, group: Sequence[int]) -> bool:
    cost = sum(_cost(one, builder.jobs) for one in group)
    return cost <= builder.policy.move_worth_s * float(builder.jobs.size[row])


def _try(
    builder: PlanBuilder, row: int, group: Sequence[int], sizes: Mapping[int, tuple[int, ...]], terms: Terms
) -> Rearrangement | None:
    jobs, after = builder.jobs, builder.cluster.copy()
    same_kind: dict[int, Terms] = {}
    for one in group:
        placement = placement_of(one, jobs.gang_of(one), after)
        if not is_whole(placement, jobs.gang_of(one)):
            return None
        same_kind[one] = Terms(kinds=frozenset({builder.kind_of(placement)}))
        after.release(one, jobs.gang_of(one), placement)
    left = builder.free.after(after)
    placed = left.place(jobs.gang_of(row), terms)
    if placed is None:
        return None
    places: dict[int, Placement] = {}
    order = sorted(group, key=lambda one: (-sizes[one][0], one))
    for one in order:  # each gets its fewest workers first; then each as many as fit
        place = left.place(replace(jobs.gang_of(one), num_workers=sizes[one][0]), same_kind[one])
        if place is None:
            return None
        places[one] = place
    for one in order:
        places[one] = _largest(jobs.gang_of(one), sizes[one], places[one], left, same_kind[one])
    return Rearrangement(tuple(group), tuple(places.items()), placed)


def _largest(gang: Gang, sizes: Sequence[int], least: Placement, free: FreeSlots, terms: Terms) -> Placement:
    """Enlarge a placement to as many workers as fit, at most those of the gang; `least` if no larger one fits."""
    smallest = replace(gang, num_workers=sizes[0])
    free.give(smallest, least)
    for size in [size for size in reversed(sizes[1:]) if size <= gang.num_workers]:
        place = free.place(replace(gang, num_workers=size), terms)
        if place is not None:
            return place
    free.take(smallest, least)
    return least
