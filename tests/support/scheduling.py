"""Snapshots in few words, a plan carried out, and what a plan may never do.

Nothing here asks the scheduler: what is checked is written down a second time, from the rules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.capacity.occupancy import Occupancy, Placement
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import HELD, RUNNING, WAITING, JobTable
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Plan, Start
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot

NOW_S = 10_000_000.0
HOUR = 3600.0
_SOON = 1e-6

ONE_TENANT = (Tenant("a"),)


@dataclass(frozen=True)
class Job:
    """A job of a snapshot. It waits, unless it says on which nodes it runs: {node: workers}."""

    name: str
    gpus: int = 1
    on: Mapping[int, int] = field(default_factory=dict)
    held: bool = False
    tenant: int = 0
    priority: int = 0
    left_s: float = math.nan  # measured
    most_left_s: float = math.inf  # declared
    preemptible: bool = True
    submitted_s: float | None = None  # None: in the order of the list
    not_before_s: float = -math.inf
    waiting_s: float = 0.0  # for how long it waits now
    waited_s: float = 0.0  # for how long it waited before
    running_s: float = 100 * HOUR  # for how long it runs now
    attained_s: float = 0.0
    interruptions: int = 0
    cost_s: float = 0.0
    type: str | None = None
    cpus: int = 1  # of each worker
    gpus_per_worker: int = 1
    sizes: tuple[int, ...] = ()  # of an elastic one, in workers

    @property
    def gang(self) -> Gang:
        workers = self.gpus // self.gpus_per_worker if self.gpus_per_worker else self.gpus
        return Gang(workers, self.cpus, self.gpus_per_worker, self.type)


def nodes(*sizes: int, type: str | None = None, cpus: int = 96, **more: int | bool) -> list[Node]:
    """Nodes of one type; a size of 0 is a node without GPU."""
    return [Node("", cpus, size, type if size else None, **more) for size in sizes]  # type: ignore[arg-type]


def cluster(machines: Sequence[Node], jobs: Sequence[Job] = ()) -> Occupancy:
    """The machines with those of the jobs that run on them."""
    named = [replace(node, node_id=f"node-{number}") for number, node in enumerate(machines)]
    held = [(row, job.gang, tuple(sorted(job.on.items()))) for row, job in enumerate(jobs) if job.on]
    return Occupancy.of(Inventory(tuple(named)), held)


def queue(jobs: Sequence[Job], now_s: float = NOW_S) -> JobTable:
    """A table whose rows are the jobs, in their order."""
    gangs = list(dict.fromkeys(job.gang for job in jobs))
    table = JobTable(gangs)
    columns = {
        "state": [HELD if job.held else RUNNING if job.on else WAITING for job in jobs],
        "gang": [gangs.index(job.gang) for job in jobs],
        "size": [job.gang.num_workers * (job.gang.gpus_per_worker or job.cpus) for job in jobs],
        "submitted_s": [row - 1000.0 if job.submitted_s is None else job.submitted_s for row, job in enumerate(jobs)],
        "waiting_since_s": [now_s - job.waiting_s for job in jobs],
        "started_s": [now_s - job.running_s if job.on else 0.0 for job in jobs],
        "remaining_s": [job.left_s for job in jobs],
        "interruption_cost_s": [job.cost_s for job in jobs],
    }
    same = [
        "tenant",
        "priority",
        "waited_s",
        "attained_s",
        "most_left_s",
        "not_before_s",
        "preemptible",
        "interruptions",
    ]
    columns |= {name: [getattr(job, name) for job in jobs] for name in same}
    table.fill({name: np.array(values) for name, values in columns.items()})
    return table


def snapshot(
    machines: Sequence[Node],
    jobs: Sequence[Job],
    tenants: Sequence[Tenant] = ONE_TENANT,
    used_s: Sequence[float] | None = None,
    now_s: float = NOW_S,
) -> Snapshot:
    """One moment of the jobs on the machines."""
    used = np.zeros(len(tenants)) if used_s is None else np.array(used_s, float)
    sizes = {row: job.sizes for row, job in enumerate(jobs) if job.sizes}
    table, machines_now = queue(jobs, now_s), cluster(machines, jobs)
    return Snapshot(now_s, table, machines_now, tuple(tenants), used, sizes=sizes)


def said(plan: Plan, jobs: Sequence[Job]) -> list[str]:
    """A plan in words: `stop small`, `start big on 0`; with workers where a gang is on several nodes."""
    return [
        f"stop {jobs[one.row].name}" if isinstance(one, Interrupt) else f"start {jobs[one.row].name} on {_where(one)}"
        for one in plan.decisions
    ]


def _where(start: Start) -> str:
    if len(start.placement) == 1:
        return str(start.placement[0][0])
    return " ".join(f"{node}:{workers}" for node, workers in start.placement)


def carry_out(before: Snapshot, plan: Plan, later_s: float = 0.0) -> Snapshot:
    """The snapshot after its plan was carried out, and so much later; what an interruption loses is to be redone."""
    jobs, machines, now_s = before.jobs.copy(), before.cluster.copy(), before.now_s
    where: dict[int, Placement] = {}
    for one in plan.decisions:
        row, gang = one.row, jobs.gang_of(one.row)
        if isinstance(one, Start):
            gang = jobs.resize(row, sum(workers for _, workers in one.placement))
            machines.hold(row, gang, one.placement)
            where[row] = one.placement
            jobs.waited_s[row] += now_s - jobs.waiting_since_s[row]
            jobs.state[row], jobs.started_s[row] = RUNNING, now_s
        else:
            machines.release(row, gang, where.get(row) or placement_in(before, row))
            jobs.attained_s[row] += now_s - jobs.started_s[row]
            jobs.remaining_s[row] += jobs.interruption_cost_s[row]
            if row in before.sizes:
                jobs.resize(row, before.sizes[row][0])
            jobs.interruptions[row] += one.cause is not Cause.RESIZED
            jobs.state[row], jobs.waiting_since_s[row] = WAITING, now_s
    running = jobs.state == RUNNING
    jobs.remaining_s[running] -= later_s
    jobs.most_left_s[running] -= later_s
    return replace(before, now_s=now_s + later_s, jobs=jobs, cluster=machines)


def placement_in(before: Snapshot, row: int) -> Placement:
    """Where a running job is."""
    if row in before.cluster.without_slots:
        return before.cluster.without_slots[row]
    gang = before.jobs.gang_of(row)
    each = gang.gpus_per_worker or gang.cpus_per_worker
    held = Counter(node for node, line in enumerate(before.cluster.slots.tolist()) for one in line if one == row)
    return tuple((node, slots // each) for node, slots in sorted(held.items()))


def type_of(before: Snapshot, row: int) -> str | None:
    """The type of the nodes that a running job is on."""
    of = before.cluster
    found: str | None = of.types[of.kinds[placement_in(before, row)[0][0]]]
    return found


@dataclass
class Machine:
    """A node, and how it changes while a plan is made. reserved_s: from when on it is somebody else's."""

    number: int
    type: str | None
    has_gpus: bool
    usable: bool
    size: int
    free: int
    cpus: int  # free
    all_cpus: int
    holders: list[int]  # of each slot; the row of a job, -1 free, -3 foreign
    reserved_s: float = math.inf

    @property
    def idle(self) -> bool:
        return self.free == self.size

    def holds_empty(self, gang: Gang) -> int:
        """Workers of a gang that it holds when nobody else is there."""
        by_cpu = self.all_cpus // gang.cpus_per_worker
        return min(by_cpu, self.size // (gang.gpus_per_worker or gang.cpus_per_worker))


def violations(before: Snapshot, plan: Plan, policy: Policy) -> list[str]:
    """What a plan does against the rules, in words."""
    return _Checker(before, policy).check(plan)


class _Checker:
    """Carries a plan out on plain lists, and notes what breaks a rule."""

    def __init__(self, before: Snapshot, policy: Policy) -> None:
        of = before.cluster
        self.before, self.jobs, self.policy = before, before.jobs.copy(), policy
        self.free = [line.count(-1) for line in of.slots.tolist()]
        self.cpus = of.cpus_free.tolist()
        self.state = self.jobs.state.tolist()
        self.where = {row: placement_in(before, row) for row, state in enumerate(self.state) if state == RUNNING}
        self.stopped: set[int] = set()
        self.started: set[int] = set()
        self.wrong: list[str] = []

    def say(self, row: int, what: str) -> None:
        self.wrong.append(f"job {row} {what}")

    def check(self, plan: Plan) -> list[str]:
        for one in plan.decisions:
            if isinstance(one, Interrupt):
                self.interrupt(one, plan)
            else:
                self.start(one)
        return self.wrong

    def interrupt(self, one: Interrupt, plan: Plan) -> None:
        row = one.row
        if self.state[row] != RUNNING or row in self.started or row in self.stopped:
            self.say(row, "is interrupted but did not run before")
            return
        self.may_be_interrupted(one, plan)
        self.state[row] = WAITING
        self.stopped.add(row)
        self.change(row, self.where.pop(row), 1)
        if row in self.before.sizes:
            self.jobs.resize(row, self.before.sizes[row][0])

    def may_be_interrupted(self, one: Interrupt, plan: Plan) -> None:
        jobs, policy, row = self.jobs, self.policy, one.row
        if not jobs.preemptible[row]:
            self.say(row, "is interrupted and is not preemptible")
        if not policy.preemption:
            self.say(row, "is interrupted without preemption")
        if jobs.interruptions[row] >= policy.most_interruptions:
            self.say(row, "is interrupted too often")
        pause = policy.protected_s * (1 + jobs.interruptions[row] / policy.protected_growth)
        if self.before.now_s < jobs.started_s[row] + pause - _SOON:
            self.say(row, "is interrupted while it is protected")
        starts = {other.row: other for other in plan.decisions if isinstance(other, Start)}
        if one.cause is Cause.RESIZED:
            self.is_resized(one, starts)
        elif one.for_row not in starts:
            self.say(row, "is interrupted for nobody who starts")
        elif one.cause is Cause.MOVED:
            if row not in starts:
                self.say(row, "is moved to nowhere")
        elif one.cause is Cause.RECLAIMED:
            if not self.is_owed(one.for_row, row):
                self.say(row, "is reclaimed for what is not guaranteed")
        elif jobs.priority[row] > jobs.priority[one.for_row] and not self.goes_first(one.for_row, row):
            self.say(row, "is interrupted for a lower class")

    def is_resized(self, one: Interrupt, starts: Mapping[int, Start]) -> None:
        """With fewer workers for a job of no lower class that starts, or with more for nobody."""
        row, before = one.row, self.jobs.gang_of(one.row).num_workers
        after = sum(workers for _, workers in starts[row].placement) if row in starts else 0
        if row not in self.before.sizes or row not in starts:
            self.say(row, "is resized to nothing")
        elif one.for_row is None and after <= before:
            self.say(row, "is interrupted for no more than it has")
        elif one.for_row is not None and one.for_row not in starts:
            self.say(row, "is interrupted for nobody who starts")
        elif one.for_row is not None and self.jobs.priority[row] > self.jobs.priority[one.for_row]:
            waited = self.jobs.waited_s[one.for_row] + self.before.now_s - self.jobs.waiting_since_s[one.for_row]
            if waited <= self.policy.most_wait_s:
                self.say(row, "is shrunk for a lower class")

    def goes_first(self, row: int, victim: int) -> bool:
        """Whatever its class: within its tenant's guarantee before others of the tenant, or after too long a wait."""
        waited = self.jobs.waited_s[row] + self.before.now_s - self.jobs.waiting_since_s[row]
        owed = self.jobs.tenant[row] == self.jobs.tenant[victim] and self.is_owed(row, victim)
        return bool(waited > self.policy.most_wait_s) or owed

    def is_owed(self, row: int, victim: int) -> bool:
        """Whether the job's tenant is guaranteed as much, of any type or of that which the victim is on."""
        kind, guaranteed = self.kind_of(self.where[victim]), self.before.tenants[int(self.jobs.tenant[row])].guaranteed
        return any(key in (kind, None) and self.size(row) <= most for key, most in guaranteed)

    def start(self, one: Start) -> None:
        row = one.row
        if self.state[row] != WAITING or row in self.started:
            self.say(row, "is started but does not wait")
            return
        if self.jobs.not_before_s[row] > self.before.now_s:
            self.say(row, "is started too early")
        workers = sum(workers for _, workers in one.placement)
        gang = self.jobs.resize(row, workers) if workers in self.before.sizes.get(row, ()) else self.jobs.gang_of(row)
        if workers != gang.num_workers or any(n < 1 for _, n in one.placement):
            self.say(row, "is not started as a whole")
        if len({node for node, _ in one.placement}) != len(one.placement):
            self.say(row, "is on a node twice")
        self.nodes_are_right(row, gang, one.placement)
        self.within_limit(row, one.placement)
        self.state[row] = RUNNING
        self.started.add(row)
        self.where[row] = one.placement
        self.change(row, one.placement, -1)

    def nodes_are_right(self, row: int, gang: Gang, placement: Placement) -> None:
        of = self.before.cluster
        for node, workers in placement:
            if not of.usable[node]:
                self.say(row, f"is started on node {node}, which is not usable")
            if gang.gpus_per_worker and not of.has_gpus[node]:
                self.say(row, f"is started on node {node}, which has no GPU")
            if self.slots(gang, node, workers) > self.free[node] or workers * gang.cpus_per_worker > self.cpus[node]:
                self.say(row, f"does not fit on node {node}")
        kinds = {of.kinds[node] for node, _ in placement}
        if len(kinds) > 1 or gang.accelerator_type not in (None, self.kind_of(placement)):
            self.say(row, f"is started on nodes of {kinds}")
        if len(placement) > 1:
            self.spans_whole_nodes(row, gang, placement)

    def spans_whole_nodes(self, row: int, gang: Gang, placement: Placement) -> None:
        of = self.before.cluster
        kind = of.kinds[placement[0][0]]
        for node in range(len(of.names)):
            same = gang.gpus_per_worker and of.usable[node] and of.kinds[node] == kind
            if same and self.fit_empty(gang, node) >= gang.num_workers:
                self.say(row, f"spans nodes and would fit node {node}")
                break
        if sum(self.free[node] < of.sizes[node] for node, _ in placement) > 1:
            self.say(row, "shares more than one of its nodes")
        room = {node: min(self.fit_empty(gang, node), self.cpus[node] // gang.cpus_per_worker) for node, _ in placement}
        if sum(workers < room[node] for node, workers in placement) > 1:
            self.say(row, "leaves room on more than one of its nodes")

    def fit_empty(self, gang: Gang, node: int) -> int:
        """Workers that the node holds if it is empty."""
        of = self.before.cluster
        slots = int(of.sizes[node]) // (gang.gpus_per_worker or gang.cpus_per_worker)
        return min(slots, int(of.cpus[node]) // gang.cpus_per_worker)

    def within_limit(self, row: int, placement: Placement) -> None:
        tenant, kind = int(self.jobs.tenant[row]), self.kind_of(placement)
        for key, most in self.before.tenants[tenant].limit if self.jobs.gang_of(row).gpus_per_worker else ():
            if key in (kind, None) and self.held(tenant, key) + self.size(row) > most:
                self.say(row, f"is started above its tenant's limit of {most}")

    def held(self, tenant: int, key: str | None) -> float:
        """GPUs of a tenant, of one type or of all."""
        rows = [row for row in self.where if self.jobs.tenant[row] == tenant and self.jobs.gang_of(row).gpus_per_worker]
        return sum(self.size(row) for row in rows if key is None or self.kind_of(self.where[row]) == key)

    def kind_of(self, placement: Placement) -> str | None:
        of = self.before.cluster
        found: str | None = of.types[of.kinds[placement[0][0]]]
        return found

    def size(self, row: int) -> float:
        return float(self.jobs.size[row])

    def slots(self, gang: Gang, node: int, workers: int) -> int:
        if gang.gpus_per_worker:
            return workers * gang.gpus_per_worker
        return 0 if self.before.cluster.has_gpus[node] else workers * gang.cpus_per_worker

    def change(self, row: int, placement: Placement, sign: int) -> None:
        gang = self.jobs.gang_of(row)
        for node, workers in placement:
            self.free[node] += sign * self.slots(gang, node, workers)
            self.cpus[node] += sign * workers * gang.cpus_per_worker
