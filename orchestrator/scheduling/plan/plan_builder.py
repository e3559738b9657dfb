"""A plan in the making: what is decided, and who holds what after it."""

from __future__ import annotations

from functools import cached_property

from cluster.capacity.free_slots import FreeSlots
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy, Placement, placement_of, workers_in
from orchestrator.scheduling.job_table import JobTable
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Moved, Start
from orchestrator.scheduling.plan.victims import Victims
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import Limits
from orchestrator.scheduling.ranking import Standing, standing
from orchestrator.scheduling.snapshot import Snapshot

_FEW = 8  # holding more is quicker all at once


class Draft:
    """The snapshot itself is not changed.

    Attributes:
        jobs: the snapshot's, with the workers that elastic ones get by the decisions so far.
        free: slots after the decisions so far.
        limits: what each tenant may still take after them.
        decisions: in their order.
        interrupted: rows that were stopped and are to be looked at again.
    """

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self.snapshot, self.policy = snapshot, policy
        self.jobs: JobTable = snapshot.jobs
        self.free = FreeSlots(snapshot.cluster, snapshot.closes_s())
        self.limits = Limits(snapshot)
        self.decisions: list[Interrupt | Start] = []
        self.interrupted: list[int] = []
        self._changed: Occupancy | None = None
        self._held: list[tuple[int, Gang, Placement]] = []  # started, and not yet in `_changed`

    @property
    def cluster(self) -> Occupancy:
        """Who holds what after the decisions so far. Most plans never ask."""
        if self._changed is None:
            self._changed = self.snapshot.cluster.copy()
        if len(self._held) > _FEW:
            self._changed.hold_all(self._held)
        else:
            for row, gang, placement in self._held:
                self._changed.hold(row, gang, placement)
        self._held = []
        return self._changed

    @cached_property
    def standing(self) -> Standing:
        return standing(self.snapshot, self.policy)

    @cached_property
    def victims(self) -> Victims:
        return Victims(self.snapshot, self.standing, self.policy)

    def look_again(self) -> None:
        """At what is free, without reservations."""
        self.free = FreeSlots(self.cluster, self.snapshot.closes_s())

    def kinds(self, row: int) -> frozenset[int] | None:
        """Kinds of nodes that its tenant's limit lets a job go to; None: all."""
        return self.limits.kinds(self.jobs, row) if self.limits else None

    def kind_of(self, placement: Placement) -> int:
        return int(self.snapshot.cluster.kinds[placement[0][0]])

    def start(self, row: int, placement: Placement) -> None:
        """With as many workers as there are in the placement."""
        self.free.take(self.with_workers(row, workers_in(placement)), placement)
        self.put(row, placement)

    def put(self, row: int, placement: Placement) -> None:
        """Start a job where slots were taken for it."""
        self._held.append((row, self.jobs.gang_of(row), placement))
        if self.limits:
            self.limits.take(self.jobs, row, self.kind_of(placement))
        self.decisions.append(Start(row, placement))

    def stop(self, row: int, cause: Cause, for_row: int | None) -> None:
        """An elastic one waits with its fewest from now on."""
        placement = placement_of(row, self.jobs.gang_of(row), self.cluster)
        self.let_go(row, placement)
        self.victims.gone(row)
        if row in self.snapshot.sizes:
            self.with_workers(row, self.snapshot.sizes[row][0])
        self.decisions.append(Interrupt(row, cause, for_row))

    def let_go(self, row: int, placement: Placement) -> None:
        """Free what a job holds. No decision."""
        gang = self.jobs.gang_of(row)
        self.cluster.release(row, gang, placement)
        self.free.give(gang, placement)
        self.limits.take(self.jobs, row, self.kind_of(placement), sign=-1)

    def hold_again(self, row: int, placement: Placement) -> None:
        """Undo `let_go`."""
        gang = self.with_workers(row, workers_in(placement))
        self.free.take(gang, placement)
        self.cluster.hold(row, gang, placement)
        self.limits.take(self.jobs, row, self.kind_of(placement))

    def rearrange(self, row: int, moved: Moved, cause: Cause) -> None:
        """Start a job in the place of others, which go on elsewhere or with fewer workers."""
        after = {victim: workers_in(placement) for victim, placement in moved.elsewhere}
        for victim in moved.victims:
            same = after[victim] == self.jobs.gang_of(victim).num_workers
            self.stop(victim, Cause.MOVED if same else cause, row)
        self.start(row, moved.placement)
        for victim, placement in moved.elsewhere:
            self.start(victim, placement)

    def with_workers(self, row: int, num_workers: int) -> Gang:
        """The gang of a job that gets so many."""
        gang = self.jobs.gang_of(row)
        if gang.num_workers == num_workers:
            return gang
        if self.jobs is self.snapshot.jobs:
            self.jobs = self.jobs.copy()
        return self.jobs.resize(row, num_workers)
