"""Elastic jobs, which may go on with fewer workers or with more: what is shrunk for a gang, and who grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cluster.free import FreeSlots, Terms
from cluster.occupancy import Occupancy, Placement, placement_of, workers_in
from cluster.resources import Gang
from orchestrator.scheduling.moves import Moved
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.table import JobTable
from orchestrator.scheduling.victims import Victims

_TRIED = 8  # jobs

Sizes = Mapping[int, tuple[int, ...]]


def shrinkable(row: int, jobs: JobTable, sizes: Sizes, victims: Victims) -> list[int]:
    """Running jobs that may go on with fewer workers for this one, the cheapest first, of equals the largest."""
    may = victims.shrinkable_for(row)
    found = [one for one in sizes if may[one] and jobs.gang_of(one).num_workers > sizes[one][0]]
    return sorted(found, key=lambda one: (_cost(one, jobs), -float(jobs.size[one]), float(jobs.submitted_s[one]), one))


def shrink_for(
    row: int,
    gang: Gang,
    jobs: JobTable,
    sizes: Sizes,
    cluster: Occupancy,
    free: FreeSlots,
    victims: Victims,
    policy: Policy,
    terms: Terms,
) -> Moved | None:
    """Jobs that go on with fewer workers, so that a gang has room at once.

    None where there are none, or where it costs more than `move_worth_s` of the gang's own slots. They stay on nodes of
    the kind that they are on, and go to none that is reserved or about to close.
    """
    if policy.move_worth_s <= 0:
        return None
    worth = policy.move_worth_s * float(jobs.size[row])
    for group in _groups(shrinkable(row, jobs, sizes, victims)[:_TRIED]):
        if sum(_cost(one, jobs) for one in group) > worth:
            continue
        moved = _try(group, gang, jobs, sizes, cluster, free, terms)
        if moved is not None:
            return moved
    return None


def shrink_own(
    row: int,
    victim: int,
    gang: Gang,
    jobs: JobTable,
    sizes: Sizes,
    cluster: Occupancy,
    free: FreeSlots,
    policy: Policy,
    terms: Terms,
) -> Moved | None:
    """The same with one job, which goes on with its fewest, for one that waits for the limit of their tenant."""
    if _cost(victim, jobs) > policy.move_worth_s * float(jobs.size[row]):
        return None
    return _try((victim,), gang, jobs, {victim: sizes[victim][:1]}, cluster, free, terms)


def is_worth_growing(row: int, num_workers: int, snapshot: Snapshot, policy: Policy) -> bool:
    """Whether a running job would end so much earlier with so many workers that its interruption pays.

    It is taken to be as many times as fast as it has more workers.
    """
    now = snapshot.jobs.gang_of(row).num_workers
    saved_s = float(snapshot.left_s[row]) * (1.0 - now / num_workers)
    return saved_s > policy.grow_worth * float(snapshot.jobs.interruption_cost_s[row])


def is_whole(placement: Placement, gang: Gang) -> bool:
    """Not of a gang on a node that is not seen at the moment, nor of one without GPUs on a node that has some: it holds
    no slot there.
    """
    return workers_in(placement) == gang.num_workers


def _cost(row: int, jobs: JobTable) -> float:
    """GPU-seconds"""
    return float(jobs.interruption_cost_s[row] * jobs.size[row])


def _groups(rows: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Each alone, then more and more of them together."""
    yield from ((row,) for row in rows)
    yield from (tuple(rows[:count]) for count in range(2, len(rows) + 1))


def _try(
    group: Sequence[int], gang: Gang, jobs: JobTable, sizes: Sizes, cluster: Occupancy, free: FreeSlots, terms: Terms
) -> Moved | None:
    after = cluster.copy()
    same_kind: dict[int, Terms] = {}
    for row in group:
        placement = placement_of(row, jobs.gang_of(row), after)
        if not is_whole(placement, jobs.gang_of(row)):
            return None
        same_kind[row] = Terms(kinds=frozenset({int(cluster.kinds[placement[0][0]])}))
        after.release(row, jobs.gang_of(row), placement)
    left = free.after(after)
    placed = left.place(gang, terms)
    if placed is None:
        return None
    places: dict[int, Placement] = {}
    order = sorted(group, key=lambda row: (-sizes[row][0], row))
    for row in order:  # room for all of them at first, and then as much as each can have
        place = left.place(replace(jobs.gang_of(row), num_workers=sizes[row][0]), same_kind[row])
        if place is None:
            return None
        places[row] = place
    for row in order:
        places[row] = _largest(jobs.gang_of(row), sizes[row], places[row], left, same_kind[row])
    return Moved(tuple(group), tuple(places.items()), placed)


def _largest(gang: Gang, sizes: Sequence[int], least: Placement, free: FreeSlots, terms: Terms) -> Placement:
    """Instead of the least, with as many workers as there is room for, and no more than it has."""
    smallest = replace(gang, num_workers=sizes[0])
    free.give(smallest, least)
    for size in [size for size in reversed(sizes[1:]) if size <= gang.num_workers]:
        place = free.place(replace(gang, num_workers=size), terms)
        if place is not None:
            return place
    free.take(smallest, least)
    return least
