"""What is left over is lent to elastic jobs, and taken back for gangs that find no room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cluster.capacity.free_slots import Terms
from cluster.capacity.occupancy import Placement, placement_of
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Start
from orchestrator.scheduling.plan.plan_builder import Draft
from orchestrator.scheduling.plan.resizing import is_whole, is_worth_growing, shrink_for, shrink_own, shrinkable
from orchestrator.scheduling.quota import NOWHERE

TermsOf = Callable[[int], Terms]  # of a row, besides its tenant's limit

_REPLACED = Start(-1, ())


def can_take_back(draft: Draft, row: int) -> bool:
    """Whether anybody has been lent something that this job may want."""
    return bool(draft.snapshot.sizes and shrinkable(draft, row))


def take_back(draft: Draft, row: int, terms: Terms) -> bool:
    """Start a job in the place of what others were lent, if that is enough."""
    moved = shrink_for(draft, row, terms) if draft.snapshot.sizes else None
    if moved is not None:
        draft.rearrange(row, moved, Cause.RESIZED)
    return moved is not None


def take_back_within_limit(draft: Draft, row: int, terms_of: TermsOf) -> bool:
    """The same for a job that waits for the limit of its tenant, from another one of the same tenant."""
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
    """Give what is left over to elastic jobs: first to those that start, then to those that run if nobody waits."""
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
    """Where the limit of its tenant would let a job go once another one has its fewest workers."""
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
    """Whether anybody still waits for room, and the tenants of those who wait for their limit."""
    started = {one.row for one in draft.decisions if isinstance(one, Start)}
    rows = draft.snapshot.waiting.nonzero()[0].tolist()
    rows += [one.row for one in draft.decisions if isinstance(one, Interrupt)]
    left = [row for row in rows if row not in started]
    at_limit = [row for row in left if draft.kinds(row) == NOWHERE]
    return len(left) > len(at_limit), {int(draft.jobs.tenant[row]) for row in at_limit}


def _put_larger(draft: Draft, row: int, placement: Placement, terms_of: TermsOf, runs: bool = False) -> bool:
    """Place a job anew with as many workers as it can get, if these are more; else all stays as it was."""
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
