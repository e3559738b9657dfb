"""A plan in the making: the decisions so far, and the occupancy that follows from them."""

from __future__ import annotations

from functools import cached_property

from cluster.capacity.free_slots import FreeSlots
from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy, Placement, placement_of, workers_in
from orchestrator.scheduling.job_table import JobTable
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Rearrangement, Start
from orchestrator.scheduling.plan.victims import Victims
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import Limits
from orchestrator.scheduling.ranking import Ranking, ranking
from orchestrator.scheduling.snapshot import Snapshot

_FEW = 8  # above this number, holding all at once is faster


class PlanBuilder:
    """The decisions so far and their effects. The snapshot itself is not changed.

    Attributes:
        jobs: the snapshot's table, in which elastic jobs have the workers that the decisions give them.
        free: free slots after the decisions so far.
        limits: what each tenant may still take after them.
        decisions: in the order to carry them out.
        interrupted: rows of interrupted jobs, which this plan may start again.
    """

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self.snapshot, self.policy = snapshot, policy
        self.jobs: JobTable = snapshot.jobs
        self.free = FreeSlots(snapshot.cluster)
        self.limits = Limits(snapshot)
        self.decisions: list[Interrupt | Start] = []
        self.interrupted: list[int] = []
        self._changed: Occupancy | None = None
        self._held: list[tuple[int, Gang, Placement]] = []  # started jobs that `_changed` does not contain yet

    @property
    def cluster(self) -> Occupancy:
        """The occupancy after the decisions so far. It is computed on demand, since most plans do not need it."""
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
    def ranking(self) -> Ranking:
        return ranking(self.snapshot, self.policy)

    @cached_property
    def victims(self) -> Victims:
        return Victims(self.snapshot, self.ranking, self.policy)

    def look_again(self) -> None:
        """Recompute the free slots, without reservations."""
        self.free = FreeSlots(self.cluster)

    def kinds(self, row: int) -> frozenset[int] | None:
        """Kinds of nodes that the tenant's limit allows for a job; None: all."""
        return self.limits.kinds(self.jobs, row) if self.limits else None

    def kind_of(self, placement: Placement) -> int:
        return int(self.snapshot.cluster.kinds[placement[0][0]])

    def start(self, row: int, placement: Placement) -> None:
        """Start a job with as many workers as the placement has."""
        self.free.take(self.with_workers(row, workers_in(placement)), placement)
        self.put(row, placement)

    def put(self, row: int, placement: Placement) -> None:
        """Start a job whose slots are taken already."""
        self._held.append((row, self.jobs.gang_of(row), placement))
        if self.limits:
            self.limits.take(self.jobs, row, self.kind_of(placement))
        self.decisions.append(Start(row, placement))

    def stop(self, row: int, cause: Cause, for_row: int) -> None:
        """Interrupt a job. An elastic job waits with its fewest workers from now on."""
        placement = placement_of(row, self.jobs.gang_of(row), self.cluster)
        self.let_go(row, placement)
        self.victims.gone(row)
        if row in self.snapshot.sizes:
            self.with_workers(row, self.snapshot.sizes[row][0])
        self.decisions.append(Interrupt(row, cause, for_row))

    def let_go(self, row: int, placement: Placement) -> None:
        """Free the slots of a job, without a decision."""
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

    def rearrange(self, row: int, found: Rearrangement | None, cause: Cause) -> bool:
        """Start a job on the slots of others, which go on elsewhere or with fewer workers. False: no way was found."""
        if found is None:
            return False
        after = {victim: workers_in(placement) for victim, placement in found.elsewhere}
        for victim in found.victims:
            same = after[victim] == self.jobs.gang_of(victim).num_workers
            self.stop(victim, Cause.MOVED if same else cause, row)
        self.start(row, found.placement)
        for victim, placement in found.elsewhere:
            self.start(victim, placement)
        return True

    def with_workers(self, row: int, num_workers: int) -> Gang:
        """Set a job's number of workers. Returns its gang."""
        gang = self.jobs.gang_of(row)
        if gang.num_workers == num_workers:
            return gang
        if self.jobs is self.snapshot.jobs:
            self.jobs = self.jobs.copy()
        return self.jobs.resize(row, num_workers)
