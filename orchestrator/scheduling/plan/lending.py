"""Lending: slots that are left over go to elastic jobs, and are taken back for gangs that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cluster.capacity.free_slots import Terms
from cluster.capacity.occupancy import Placement, placement_of
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Start
from orchestrator.scheduling.plan.plan_builder import PlanBuilder
from orchestrator.scheduling.plan.resizing import is_whole, is_worth_growing, shrink_for, shrink_own, shrinkable
from orchestrator.scheduling.quota import NOWHERE

TermsOf = Callable[[int], Terms]  # the terms of a row, without the limit of its tenant

_REPLACED = Start(-1, ())


def can_take_back(builder: PlanBuilder, row: int) -> bool:
    """Whether a running job can shrink for this one."""
    return bool(builder.snapshot.sizes and shrinkable(builder, row))


def take_back(builder: PlanBuilder, row: int, terms: Terms) -> bool:
    """Start a job on slots that were lent to others, if shrinking these frees enough."""
    moved = shrink_for(builder, row, terms) if builder.snapshot.sizes else None
    if moved is not None:
        builder.rearrange(row, moved, Cause.RESIZED)
    return moved is not None


def take_back_within_limit(builder: PlanBuilder, row: int, terms_of: TermsOf) -> bool:
    """Start a job that its tenant's limit holds back, by shrinking another job of the same tenant."""
    tenant = builder.jobs.tenant
    for victim in shrinkable(builder, row) if builder.snapshot.sizes else ():
        kinds = _kinds_if_shrunk(builder, row, victim) if tenant[victim] == tenant[row] else NOWHERE
        if kinds == NOWHERE:
            continue
        moved = shrink_own(builder, row, victim, replace(terms_of(row), kinds=kinds))
        if moved is not None:
            builder.rearrange(row, moved, Cause.RESIZED)
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
    """Return whether a job still waits for slots, and the tenants that have a job waiting for their limit."""
    started = {one.row for one in builder.decisions if isinstance(one, Start)}
    rows = builder.snapshot.waiting.nonzero()[0].tolist()
    rows += [one.row for one in builder.decisions if isinstance(one, Interrupt)]
    left = [row for row in rows if row not in started]
    at_limit = [row for row in left if builder.kinds(row) == NOWHERE]
    return len(left) > len(at_limit), {int(builder.jobs.tenant[row]) for row in at_limit}


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
