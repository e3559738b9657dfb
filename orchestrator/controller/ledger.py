"""The ledger of nodes: from queue jobs to the scheduler's snapshot, and from its plan to transitions. Pure functions.

A plan is about one moment: this job stops, and that one starts in its place. In reality a job takes a while to stop.
Its nodes count as free as soon as it is told to stop, and the job that is to start there gets a nomination. A
nomination holds its nodes against all other jobs, and becomes a lease once they are actually free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cluster.capacity.inventory import Inventory, Node
from cluster.capacity.occupancy import Placement, workers_in
from cluster.text import many
from orchestrator.queue.clock import USUAL
from orchestrator.queue.months import spent
from orchestrator.queue.records import Job, NodePlaces, Transition
from orchestrator.queue.retry import BUDGETS, may_start_at_s
from orchestrator.queue.states import HOLDS_A_LEASE, DesiredState, Reason, State
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling import job_table as table
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Plan, Start
from orchestrator.scheduling.snapshot import Snapshot, snapshot_of

Nominations = Mapping[str, NodePlaces]  # by job id

_BY_PLAN = frozenset(Reason(cause.value) for cause in Cause)
_SOON_S = 600.0


@dataclass(frozen=True)
class Cluster:
    """The resources and rules that jobs are planned with.

    Attributes:
        used_s: decayed GPU-seconds by tenant.
        closed: ids of nodes that take nothing new.
        slow: ids of jobs that take unusually long to stop; their nodes are not expected to be free soon.
        gpu_hours: GPU-hours of this month by tenant, for tenants that have a limit on them.
    """

    inventory: Inventory
    tenants: tuple[Tenant, ...]
    used_s: Mapping[str, float] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    gpu_hours: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def spent(self) -> frozenset[str]:
        """Tenants that have used up their GPU-hours of the month. None of their jobs that need GPUs starts."""
        return spent(self.tenants, self.gpu_hours)


@dataclass(frozen=True)
class PlanResult:
    """The result of a plan: transitions in order, and the nominations from now on."""

    transitions: tuple[Transition, ...]
    nominations: Nominations


def snapshot(jobs: Sequence[Job], nominations: Nominations, cluster: Cluster, now_s: float) -> Snapshot:
    """Build the scheduler's snapshot. Row *n* is the *n*-th job. Jobs that have ended must not be given."""
    of = {node.node_id: node for node in cluster.inventory.nodes}
    places = [places_of(job, nominations, cluster, of.keys()) for job in jobs]
    held = Counter[str]()
    for job, nodes in zip(jobs, places, strict=True):
        for node, workers in nodes:
            held[node] += workers * (job.gang.gpus_per_worker if of[node].gpus else job.gang.cpus_per_worker)
    inventory = Inventory(tuple(_as_held(node, held[node.node_id], cluster) for node in cluster.inventory.nodes))
    rows = [
        _row(job, nodes, nominations.get(job.job_id, ()), now_s, cluster.spent)
        for job, nodes in zip(jobs, places, strict=True)
    ]
    made = snapshot_of(rows, inventory, cluster.tenants, cluster.used_s, now_s)
    return replace(made, grows=not any(_is_about_to_wait(job, nominations, now_s) for job in jobs))


def _is_about_to_wait(job: Job, nominations: Nominations, now_s: float) -> bool:
    """Whether a job will wait in the queue soon, without a place to go to."""
    if job.job_id in nominations or job.wanted is not DesiredState.RUN:
        return False
    if job.state is State.STOPPING:
        return job.reason in BUDGETS
    return job.state is State.QUEUED and now_s < may_start_at_s(job) <= now_s + _SOON_S


def _as_held(node: Node, held: int, cluster: Cluster) -> Node:
    """Adjust a node so that it has room for the leases there: external use is seen late, and nodes may shrink."""
    size, foreign = (node.gpus, node.foreign_gpus) if node.gpus else (node.cpus, node.foreign_cpus)
    usable = node.usable and node.node_id not in cluster.closed and held <= size
    foreign, size = max(min(foreign, size - held), 0), max(size, held)
    if node.gpus:
        return replace(node, usable=usable, gpus=size, foreign_gpus=foreign)
    return replace(node, usable=usable, cpus=size, foreign_cpus=foreign)


def orders(jobs: Sequence[Job], plan: Plan, nominations: Nominations, cluster: Cluster) -> PlanResult:
    """Translate a plan for the jobs that it was made from, given in the same order."""
    names = [node.node_id for node in cluster.inventory.nodes]
    starts = {one.row: one.placement for one in plan.decisions if isinstance(one, Start)}
    stops = [_stop(one, jobs, starts) for one in plan.decisions if isinstance(one, Interrupt)]
    wanted = dict(nominations)
    for row, placement in starts.items():
        wanted[jobs[row].job_id] = tuple((names[node], workers) for node, workers in placement)
    grants = _grants(jobs, wanted, cluster)
    granted = {transition.job_id for transition in grants}
    return PlanResult((*stops, *grants), {job_id: places for job_id, places in wanted.items() if job_id not in granted})


def kept(jobs: Iterable[Job], nominations: Nominations, cluster: Cluster) -> Nominations:
    """Return the nominations that still hold: the job waits for it, and its nodes are open and will be free soon."""
    if not nominations:
        return nominations
    open_nodes = {node.node_id for node in cluster.inventory.nodes if node.usable} - cluster.closed
    waits = {job.job_id: job for job in jobs if job.job_id in nominations and _waits(job, cluster)}
    stays = _Free([job for job in jobs if _holds(job, cluster)], cluster)
    return {
        job_id: places
        for job_id, places in nominations.items()
        if job_id in waits and all(node in open_nodes for node, _ in places) and stays.take(waits[job_id], places)
    }


def _waits(job: Job, cluster: Cluster) -> bool:
    """Whether a job can use a nomination."""
    moved = job.state is State.STOPPING and job.reason in _BY_PLAN and job.job_id not in cluster.slow
    return job.wanted is DesiredState.RUN and (job.state is State.QUEUED or moved)


def _holds(job: Job, cluster: Cluster) -> bool:
    """Whether a job holds nodes that it will not leave soon."""
    return job.state in (State.STARTING, State.RUNNING) or job.job_id in cluster.slow


def places_of(job: Job, nominations: Nominations, cluster: Cluster, living: Container[str]) -> NodePlaces:
    """Return what a job holds from the scheduler's point of view."""
    if job.job_id in nominations:
        return tuple(place for place in nominations[job.job_id] if place[0] in living)
    return tuple(place for place in job.placement if place[0] in living) if _holds(job, cluster) else ()


def _row(job: Job, nodes: NodePlaces, nominated: NodePlaces, now_s: float, spent: Container[str]) -> tuple[Any, ...]:
    """Make a row with the fields of `orchestrator.scheduling.snapshot.ROW`."""
    runs = job.state in (State.STARTING, State.RUNNING)
    since_s = job.started_s if runs and job.started_s is not None else now_s
    left_s = None if job.max_runtime_s is None else job.max_runtime_s - job.attained_s - (now_s - since_s)
    return (
        job.job_id,
        job.tenant,
        job.priority,
        workers_in(nominated) or job.gang.num_workers,
        job.gang.cpus_per_worker,
        job.gang.gpus_per_worker,
        job.gang.accelerator_type,
        _state(job, nodes, spent),
        job.submitted_s,
        job.waiting_since_s,
        job.waited_s,
        may_start_at_s(job),
        since_s,
        job.attained_s,
        _stops_in_s(job) if job.state is State.STOPPING and not nominated else job.remaining_s,
        left_s,
        job.preemptible and runs,
        job.interruptions,
        job.interruption_cost_s,
        nodes,
        job.after,
        _sizes(job, spent),
    )


def _stops_in_s(job: Job) -> float:
    """Return the seconds within which a job is expected to save and leave."""
    return max(USUAL.grace_s, job.checkpoint_s or 0.0)


def _sizes(job: Job, spent: Container[str]) -> tuple[int, ...]:
    """Return the numbers of workers that an elastic job may have: no more than now once the GPU-hours are used up."""
    if job.gang.gpus_per_worker and job.tenant in spent:
        return tuple(size for size in job.usable_sizes if size <= job.gang.num_workers)
    return job.usable_sizes


def _state(job: Job, nodes: NodePlaces, spent: Container[str]) -> int:
    """Return the scheduler's state of a job.

    A nomination from before the GPU-hours were used up stays valid, since another job may have been stopped for it.
    """
    if nodes or job.state in (State.STARTING, State.RUNNING):
        return table.RUNNING
    if job.gang.gpus_per_worker and job.tenant in spent:
        return table.HELD
    return table.WAITING if job.state is State.QUEUED and job.wanted is DesiredState.RUN else table.HELD


def _stop(decision: Interrupt, jobs: Sequence[Job], starts: Mapping[int, Placement]) -> Transition:
    job, what = jobs[decision.row], decision.cause.value
    if decision.cause is Cause.RESIZED:
        what = f"goes on with {many(workers_in(starts[decision.row]), 'worker')} instead of {job.gang.num_workers}"
    first = "" if decision.for_row is None else f": {_name_for(job, jobs[decision.for_row])} goes first"
    reason = Reason(decision.cause.value)
    return Transition(job.job_id, job.state, job.attempt, State.STOPPING, reason, f"{what}{first}")


def _name_for(job: Job, other: Job) -> str:
    """Name another job in a message of this job. Ids of jobs are shown to their own tenant only."""
    return other.job_id if other.tenant == job.tenant else f"a job of tenant {other.tenant}"


def _grants(jobs: Sequence[Job], wanted: Nominations, cluster: Cluster) -> list[Transition]:
    """Grant leases to jobs whose nodes are actually free."""
    free, labels = _Free(jobs, cluster), cluster.inventory.labels
    job_of = {job.job_id: job for job in jobs}
    found = []
    for job_id, places in wanted.items():
        job = job_of[job_id]
        if job.state is State.QUEUED and free.take(job, places):
            where = ", ".join(labels.get(node, node) for node, _ in places)
            found.append(
                Transition(job_id, job.state, job.attempt, State.STARTING, Reason.GRANTED, f"on {where}", places)
            )
    return found


class _Free:
    """The slots that no lease holds. Nominations do not count here."""

    def __init__(self, jobs: Iterable[Job], cluster: Cluster) -> None:
        nodes = cluster.inventory.nodes
        self._gpus = Counter({node.node_id: node.gpus - node.foreign_gpus for node in nodes})
        self._cpus = Counter({node.node_id: node.cpus - node.foreign_cpus for node in nodes})
        self._type_of = {node.node_id: node.accelerator_type for node in nodes}
        self._limits = {tenant.name: tenant.limit for tenant in cluster.tenants if tenant.limit}
        self._used = Counter[tuple[str, str | None]]()  # (tenant, type) -> GPUs in use; type None: of all types
        for job in jobs:
            if job.state in HOLDS_A_LEASE:
                self._hold(job, job.placement)

    def take(self, job: Job, places: NodePlaces) -> bool:
        """Take slots if all are free and within the tenant's limit. Returns whether they were taken."""
        gang = job.gang
        for node, workers in places:
            if self._gpus[node] < workers * gang.gpus_per_worker or self._cpus[node] < workers * gang.cpus_per_worker:
                return False
        size, kind = workers_in(places) * gang.gpus_per_worker, self._type_of.get(places[0][0])
        for key, most in self._limits.get(job.tenant, ()) if size else ():
            if key in (None, kind) and self._used[job.tenant, key] + size > most:
                return False
        self._hold(job, places)
        return True

    def _hold(self, job: Job, places: NodePlaces) -> None:
        for node, workers in places:
            gpus = workers * job.gang.gpus_per_worker
            self._gpus[node] -= gpus
            self._cpus[node] -= workers * job.gang.cpus_per_worker
            for key in {None, self._type_of.get(node)}:
                self._used[job.tenant, key] += gpus
