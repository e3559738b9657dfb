"""Resizing of elastic jobs: which jobs shrink for a gang, and when growing pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cluster.capacity.free_slots import FreeSlots, Terms
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Placement, placement_of, workers_in
from orchestrator.scheduling.job_table import JobTable
from orchestrator.scheduling.plan.decisions import Moved
from orchestrator.scheduling.plan.plan_builder import PlanBuilder
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot

_TRIED = 8  # number of jobs that are tried


def shrinkable(builder: PlanBuilder, row: int) -> list[int]:
    """Return running jobs that can shrink for this one: the cheapest first, of equals the largest."""
    jobs, sizes, may = builder.jobs, builder.snapshot.sizes, builder.victims.shrinkable_for(row)
    found = [one for one in sizes if may[one] and jobs.gang_of(one).num_workers > sizes[one][0]]
    return sorted(found, key=lambda one: (_cost(one, jobs), -float(jobs.size[one]), float(jobs.submitted_s[one]), one))


def shrink_for(builder: PlanBuilder, row: int, terms: Terms) -> Moved | None:
    """Find running jobs that can go on with fewer workers, so that a gang can start now.

    None: there are none, or it costs more than `move_worth_s` of the gang's own slots. The jobs stay on nodes of the
    kind that they are on, and move to no node that is reserved or about to close.
    """
    if builder.policy.move_worth_s <= 0:
        return None
    groups = _groups(shrinkable(builder, row)[:_TRIED])
    found = (
        _try(builder, row, group, builder.snapshot.sizes, terms) for group in groups if _is_worth(builder, row, group)
    )
    return next((moved for moved in found if moved is not None), None)


def shrink_own(builder: PlanBuilder, row: int, victim: int, terms: Terms) -> Moved | None:
    """Shrink one job to its fewest workers, for a job of the same tenant that waits for the tenant's limit."""
    if not _is_worth(builder, row, (victim,)):
        return None
    return _try(builder, row, (victim,), {victim: builder.snapshot.sizes[victim][:1]}, terms)


def is_worth_growing(row: int, num_workers: int, snapshot: Snapshot, policy: Policy) -> bool:
    """Whether more workers end a running job so much earlier that the interruption pays.

    Speed is taken to be proportional to the number of workers.
    """
    now = snapshot.jobs.gang_of(row).num_workers
    saved_s = float(snapshot.left_s[row]) * (1.0 - now / num_workers)
    return saved_s > policy.grow_worth * float(snapshot.jobs.interruption_cost_s[row])


def is_whole(placement: Placement, gang: Gang) -> bool:
    """Whether a placement holds all workers of a gang.

    It does not if a node of the gang is not seen at the moment, or if the gang needs no GPU and is on a node that has
    some: it holds no slot there.
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
) -> Moved | None:
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
    return Moved(tuple(group), tuple(places.items()), placed)


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
