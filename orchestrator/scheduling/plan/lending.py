"""Lending: slots that are left over go to elastic jobs, and are taken back for gangs that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cluster.capacity.free_slots import Terms
from cluster.capacity.occupancy import Placement, placement_of
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Start
from orchestrator.scheduling.plan.plan_builder import Draft
from orchestrator.scheduling.plan.resizing import is_whole, is_worth_growing, shrink_for, shrink_own, shrinkable
from orchestrator.scheduling.quota import NOWHERE

TermsOf = Callable[[int], Terms]  # the terms of a row, without the limit of its tenant

_REPLACED = Start(-1, ())


def can_take_back(draft: Draft, row: int) -> bool:
    """Whether a running job can shrink for this one."""
    return bool(draft.snapshot.sizes and shrinkable(draft, row))


def take_back(draft: Draft, row: int, terms: Terms) -> bool:
    """Start a job on slots that were lent to others, if shrinking these frees enough."""
    moved = shrink_for(draft, row, terms) if draft.snapshot.sizes else None
    if moved is not None:
        draft.rearrange(row, moved, Cause.RESIZED)
    return moved is not None


def take_back_within_limit(draft: Draft, row: int, terms_of: TermsOf) -> bool:
    """Start a job that its tenant's limit holds back, by shrinking another job of the same tenant."""
    tenant = draft.jobs.tenant
    for victim in shrinkable(draft, row) if draft.snapshot.sizes else ():
        kinds = _kinds_if_shrunk(draft, row, victim) if tenant[victim] == tenant[row] else NOWHERE
        if kinds == NOWHERE:
            continue
        moved = shrink_own(draft, row, victim, replace(terms_of(row), kinds=kinds))
        if moved is not None:
            draft.rearrange(row, moved, Cause.RESIZED)
            return True
    return False


def lend(draft: Draft, terms_of: TermsOf) -> None:
    """Lend free slots to elastic jobs: first to those that start, then, if no job waits, to those that run."""
    sizes, tenant = draft.snapshot.sizes, draft.jobs.tenant
    waits, limited = _who_waits(draft)
    starts = [(at, one) for at, one in enumerate(draft.decisions) if isinstance(one, Start) and one.row in sizes]
    for at, start in starts:
        if int(tenant[start.row]) not in limited and _put_larger(draft, start.row, start.placement, terms_of):
            draft.decisions[at] = _REPLACED
    draft.decisions = [one for one in draft.decisions if one is not _REPLACED]
    if waits or not draft.snapshot.grows or not draft.policy.preemption:
        return
    for row in [row for row in draft.victims.may_grow(sizes) if int(tenant[row]) not in limited]:
        at, placement = len(draft.decisions), placement_of(row, draft.jobs.gang_of(row), draft.cluster)
        if _put_larger(draft, row, placement, terms_of, runs=True):
            draft.decisions.insert(at, Interrupt(row, Cause.RESIZED, None))


def _kinds_if_shrunk(draft: Draft, row: int, victim: int) -> frozenset[int] | None:
    """Return the kinds of nodes that the tenant's limit would allow if another job had its fewest workers."""
    placement = placement_of(victim, draft.jobs.gang_of(victim), draft.cluster)
    if not placement:
        return NOWHERE
    kind, held = draft.kind_of(placement), draft.jobs.gang_of(victim).num_workers
    draft.limits.take(draft.jobs, victim, kind, sign=-1)
    draft.with_workers(victim, draft.snapshot.sizes[victim][0])
    draft.limits.take(draft.jobs, victim, kind)
    kinds = draft.kinds(row)
    draft.limits.take(draft.jobs, victim, kind, sign=-1)
    draft.with_workers(victim, held)
    draft.limits.take(draft.jobs, victim, kind)
    return kinds


def _who_waits(draft: Draft) -> tuple[bool, set[int]]:
    """Return whether a job still waits for slots, and the tenants that have a job waiting for their limit."""
    started = {one.row for one in draft.decisions if isinstance(one, Start)}
    rows = draft.snapshot.waiting.nonzero()[0].tolist()
    rows += [one.row for one in draft.decisions if isinstance(one, Interrupt)]
    left = [row for row in rows if row not in started]
    at_limit = [row for row in left if draft.kinds(row) == NOWHERE]
    return len(left) > len(at_limit), {int(draft.jobs.tenant[row]) for row in at_limit}


def _put_larger(draft: Draft, row: int, placement: Placement, terms_of: TermsOf, runs: bool = False) -> bool:
    """Place a job again with more workers, as many as possible; if it cannot have more, nothing changes."""
    gang, sizes = draft.jobs.gang_of(row), draft.snapshot.sizes[row]
    if not is_whole(placement, gang):
        return False
    kind = draft.kind_of(placement)
    draft.let_go(row, placement)
    terms = terms_of(row)
    for size in [size for size in reversed(sizes) if size > gang.num_workers]:
        if runs and not is_worth_growing(row, size, draft.snapshot, draft.policy):
            break
        larger, kinds = draft.with_workers(row, size), draft.kinds(row)
        same_kind = frozenset({kind}) if kinds is None or kind in kinds else NOWHERE
        found = draft.free.place(larger, replace(terms, kinds=same_kind))
        if found is not None:
            draft.put(row, found)
            return True
    draft.hold_again(row, placement)
    return False
