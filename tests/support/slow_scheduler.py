"""The scheduler a second time: slow, obvious, and written from the rules alone.

Only for policies without preemption is this a whole plan. `slow_preemption` has what may be interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Placement
from orchestrator.scheduling.job_table import NOBODY, RUNNING, WAITING
from orchestrator.scheduling.plan.decisions import Interrupt, Plan, Reservation, Start
from orchestrator.scheduling.policy import Policy, RankBy
from orchestrator.scheduling.snapshot import Snapshot
from tests.support.scheduling import Machine, placement_in, type_of


def machines_of(snapshot: Snapshot) -> list[Machine]:
    of, found = snapshot.cluster, []
    for node in range(len(of.names)):
        holders = [one for one in of.slots[node].tolist() if one != -2]
        kind, gpus, usable = of.types[of.kinds[node]], bool(of.has_gpus[node]), bool(of.usable[node])
        free, cpus, every = holders.count(-1), int(of.cpus_free[node]), int(of.cpus[node])
        found.append(Machine(node, kind, gpus, usable, len(holders), free, cpus, every, holders))
    return found


class Standings:
    """Who goes first: the entitled, then by class, then by index, then by submission."""

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self.snapshot, self.policy, self.jobs = snapshot, policy, snapshot.jobs
        early = [one > snapshot.now_s for one in self.jobs.not_before_s.tolist()]
        self.running = [row for row, state in enumerate(self.jobs.state.tolist()) if state == RUNNING]
        self.waiting = [row for row, state in enumerate(self.jobs.state) if state == WAITING and not early[row]]
        self.rows = self.running + self.waiting
        self.waited = {row: self._waited(row) for row in self.rows}
        self.index = {row: self._index(row) for row in self.rows}
        self.level = {row: int(self.jobs.priority[row]) for row in self.rows}
        self.guarded = self._guarded() if policy.guarded_share > 0 else []
        highest = max(self.level.values(), default=0)
        for place, row in enumerate(self.guarded):
            self.index[row] = min(self.index[row], policy.guarded_expected_s) * (1 + 1e-6 * place)
            if self.waited[row] > policy.most_wait_s:
                self.level[row] = highest + 1
        self.entitled = self._entitled()

    def order(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda row: (row not in self.entitled, *self._key(row)))

    def _key(self, row: int) -> tuple[float, float, float]:
        return -self.level[row], self.index[row], float(self.jobs.submitted_s[row])

    def _waited(self, row: int) -> float:
        now = self.snapshot.now_s - self.jobs.waiting_since_s[row] if self.jobs.state[row] == WAITING else 0.0
        return float(self.jobs.waited_s[row] + now)

    def _index(self, row: int) -> float:
        jobs, policy = self.jobs, self.policy
        over = {number: self.snapshot.used_s[number] / one.weight for number, one in enumerate(self.snapshot.tenants)}
        tenant, size = int(jobs.tenant[row]), float(jobs.size[row])
        if policy.order is RankBy.SHARE:
            return float(over[tenant])
        if policy.order is RankBy.ATTAINED:
            running = self.snapshot.now_s - jobs.started_s[row] if jobs.state[row] == RUNNING else 0.0
            return float((jobs.attained_s[row] + running) * size >= policy.attained_level_s)
        if policy.order is RankBy.SUBMITTED:
            return 0.0
        measured = float(jobs.remaining_s[row])
        expected = min(float(jobs.most_left_s[row]), policy.untold_s if math.isnan(measured) else measured)
        return float(max(expected, 60.0) * self._share(over, tenant) / size**policy.size_exponent)

    def _share(self, over: dict[int, float], tenant: int) -> float:
        """Use over weight, against the mean of the tenants who have jobs."""
        jobs = self.jobs
        active = {int(jobs.tenant[row]) for row in range(jobs.rows) if jobs.state[row] != NOBODY}
        total = sum(over[one] for one in active)
        if total == 0:
            return 1.0
        bound = self.policy.share_bound
        ratio = min(max(over[tenant] / (total / len(active)), 1 / bound), bound)
        return float(ratio**self.policy.share_exponent)

    def _guarded(self) -> list[int]:
        """Those who have waited longest, as long as the guarded share is not full before them."""

        def counts(row: int) -> float:
            return self.waited[row] * (self.policy.guarded_stay if self.jobs.state[row] == RUNNING else 1.0)

        where = {row: placement_in(self.snapshot, row) for row in self.running}
        long = [row for row in self.rows if self.waited[row] > self.policy.guarded_after_s]
        long = [row for row in long if row in where or not is_stopped_by_its_limit(self.snapshot, where, row)]
        machines = machines_of(self.snapshot)
        gpus, cpus = sum(one.size for one in machines if one.has_gpus), sum(one.all_cpus for one in machines)
        left = {True: self.policy.guarded_share * gpus, False: self.policy.guarded_share * cpus}
        guarded: list[int] = []
        for row in sorted(long, key=lambda row: (-counts(row), float(self.jobs.submitted_s[row]))):
            needs_gpus = self.jobs.gang_of(row).gpus_per_worker > 0
            if left[needs_gpus] > 0:
                guarded.append(row)
                left[needs_gpus] -= float(self.jobs.size[row])
        return guarded

    def _claim(self, row: int) -> tuple[float, float, int]:
        by = self.jobs.started_s[row] if row in self.running else self.index[row]
        return float(by), float(self.jobs.submitted_s[row]), row

    def _entitled(self) -> dict[int, str | None]:
        """By class, of a class what runs (longest first), then by standing, until the guarantee is used: its type."""
        entitled: dict[int, str | None] = {}
        cluster = self.snapshot.cluster
        for tenant, one in enumerate(self.snapshot.tenants):
            left = dict(one.guaranteed)
            mine = [row for row in self.rows if self.jobs.tenant[row] == tenant]
            for row in sorted(mine, key=lambda row: (-self.level[row], row not in self.running, *self._claim(row))):
                gang, size = self.jobs.gang_of(row), float(self.jobs.size[row])
                if not gang.gpus_per_worker:
                    continue
                types = [gang.accelerator_type] if gang.accelerator_type else list(cluster.types)
                if row in self.running:
                    types = [type_of(self.snapshot, row)]
                types = [one for one in types if one in cluster.types]
                keys = [key for key in [*[one for one in types if one], None] if left.get(key, 0) >= size]
                if keys:
                    left[keys[0]] -= int(size)
                    entitled[row] = keys[0]
        return entitled


def is_stopped_by_its_limit(snapshot: Snapshot, where: Mapping[int, Placement], row: int) -> bool:
    """Whether its tenant may take no more of any type of GPU that it could use. `where` has the jobs that run."""
    types = types_for(snapshot, row)
    return bool(types) and all(exceeded(snapshot, where, row, kind) for kind in types)


def types_for(snapshot: Snapshot, row: int) -> set[str | None]:
    """Types of the GPUs that a job could use; none for a job without GPUs."""
    gang = snapshot.jobs.gang_of(row)
    machines = [one for one in machines_of(snapshot) if one.has_gpus and gang.accelerator_type in (None, one.type)]
    return {one.type for one in machines} if gang.gpus_per_worker else set()


def exceeded(snapshot: Snapshot, where: Mapping[int, Placement], row: int, kind: str | None) -> set[str | None]:
    """The limits, by their type, that a job on nodes of a type would exceed."""
    jobs, machines = snapshot.jobs, machines_of(snapshot)
    tenant, found = int(jobs.tenant[row]), set[str | None]()
    for key, most in snapshot.tenants[tenant].limit:
        held = sum(
            float(jobs.size[other])
            for other, placement in where.items()
            if jobs.tenant[other] == tenant
            and jobs.gang_of(other).gpus_per_worker
            and key in (None, machines[placement[0][0]].type)
        )
        if key in (None, kind) and held + float(jobs.size[row]) > most:
            found.add(key)
    return found


def place(
    machines: list[Machine],
    gang: Gang,
    yields_s: float = math.inf,
    allowed: Collection[str | None] | None = None,
) -> Placement | None:
    """Where a gang goes: best fit on one node, or whole nodes of a type where it is larger than any."""
    wanted = [one for one in machines if one.usable and gang.accelerator_type in (None, one.type)]
    open_ones = [one for one in wanted if one.reserved_s >= yields_s]
    if not gang.gpus_per_worker:
        return _place_by_cpus(open_ones, gang)
    open_ones = [one for one in open_ones if one.has_gpus and (allowed is None or one.type in allowed)]
    best = _best(open_ones, gang, gang.num_workers)
    if best is not None:
        return ((best.number, gang.num_workers),)
    types = [one.type for one in machines if one.has_gpus]
    soonest: dict[str | None, float] = {}
    for one in open_ones:
        soonest[one.type] = min(soonest.get(one.type, math.inf), one.reserved_s)
    for kind in sorted(soonest, key=lambda kind: (soonest[kind], types.index(kind))):
        if spans([one for one in wanted if one.has_gpus and one.type == kind], gang):
            placement = _whole([one for one in open_ones if one.type == kind], gang)
            if placement is not None:
                return placement
    return None


def spans(machines: list[Machine], gang: Gang) -> bool:
    """Whether a gang is larger than each of these nodes."""
    return all(one.holds_empty(gang) < gang.num_workers for one in machines)


def _best(machines: list[Machine], gang: Gang, workers: int) -> Machine | None:
    """The least free slots that suffice; of equals one in use, then the lowest."""
    slots, cpus = workers * gang.gpus_per_worker, workers * gang.cpus_per_worker
    fits = [one for one in machines if one.free >= slots and one.cpus >= cpus]
    return min(fits, key=lambda one: (one.free, one.idle, one.number), default=None)


def _whole(machines: list[Machine], gang: Gang) -> Placement | None:
    """The largest wholly free nodes, and one that may be shared for the last workers."""
    chosen: list[tuple[int, int]] = []
    left = gang.num_workers
    for one in sorted(machines, key=lambda one: (-one.size, one.reserved_s, one.number)):
        each = min(one.size // gang.gpus_per_worker, one.cpus // gang.cpus_per_worker)
        if one.idle and each > left:
            break
        if one.idle and each:
            chosen.append((one.number, each))
            left -= each
        if not left:
            return tuple(chosen)
    last = _best([one for one in machines if one.number not in dict(chosen)], gang, left)
    return (*chosen, (last.number, left)) if chosen and last is not None else None


def _place_by_cpus(open_ones: list[Machine], gang: Gang) -> Placement | None:
    need = gang.num_workers * gang.cpus_per_worker
    fits = [one for one in open_ones if one.cpus >= need and (one.has_gpus or one.free >= need)]
    if fits:
        return ((min(fits, key=lambda one: (one.has_gpus, one.cpus, one.number)).number, gang.num_workers),)
    chosen: list[tuple[int, int]] = []
    left = gang.num_workers
    for one in sorted(open_ones, key=lambda one: (-one.size, one.number)):
        workers = one.cpus // gang.cpus_per_worker
        if not one.has_gpus and one.idle and 0 < workers <= left:
            chosen.append((one.number, workers))
            left -= workers
        if not left:
            return tuple(chosen)
    rest = [one for one in open_ones if one.number not in dict(chosen) and not one.has_gpus]
    rest = [one for one in rest if one.free >= left * gang.cpus_per_worker]
    last = min(rest, key=lambda one: (one.free, one.number), default=None)
    return (*chosen, (last.number, left)) if chosen and last is not None else None


def slow_plan(snapshot: Snapshot, policy: Policy) -> Plan:
    """One pass over the queue, for a policy without preemption."""
    return _SlowPass(snapshot, policy).run()


class _SlowPass:
    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self.snapshot, self.policy, self.jobs = snapshot, policy, snapshot.jobs
        self.machines = machines_of(snapshot)
        self.standings = Standings(snapshot, policy)
        self.running = self.standings.running
        self.where = {row: placement_in(snapshot, row) for row in self.running}
        self.decisions: list[Interrupt | Start] = []
        self.reservation: Reservation | None = None
        self.kept: set[tuple[int, str | None]] = set()  # tenants, and which of their limits a waiting job keeps

    def run(self) -> Plan:
        self.go_through(self.standings.waiting)
        return Plan(tuple(self.decisions), self.reservation)

    def go_through(self, rows: list[int]) -> None:
        self.kept.clear()
        for row in self.standings.order(rows):
            types = types_for(self.snapshot, row)
            if types and not types & {*(self.allowed(row) or ())}:
                # Nobody passes an own job that waits for the limit of both.
                for kind in types:
                    if not exceeded(self.snapshot, {}, row, kind):
                        keys = exceeded(self.snapshot, self.where, row, kind)
                        self.kept |= {(int(self.jobs.tenant[row]), key) for key in keys}
                continue
            placement = self.placement_for(row)
            if placement is not None:
                self.start(row, placement)
            elif not self.policy.backfill:
                return
            elif self.reservation is None:
                self.reserve(row)

    def placement_for(self, row: int) -> Placement | None:
        return place(self.machines, self.jobs.gang_of(row), self.end_of(row), self.allowed(row))

    def end_of(self, row: int) -> float:
        left = float(self.jobs.remaining_s[row])
        most = float(self.jobs.most_left_s[row])
        return self.snapshot.now_s + (most if math.isnan(left) else min(left, most))

    def allowed(self, row: int) -> list[str | None] | None:
        """Types that the tenant's limit leaves, and earlier jobs of the tenant that wait for it."""
        if not self.jobs.gang_of(row).gpus_per_worker:
            return None
        tenant = int(self.jobs.tenant[row])
        return [
            kind
            for kind in self.snapshot.cluster.types
            if not exceeded(self.snapshot, self.where, row, kind) and not self.kept & {(tenant, None), (tenant, kind)}
        ]

    def start(self, row: int, placement: Placement) -> None:
        gang = self.jobs.gang_of(row)
        for node, workers in placement:
            one = self.machines[node]
            slots = workers * (gang.gpus_per_worker or (0 if one.has_gpus else gang.cpus_per_worker))
            for _ in range(slots):
                one.holders[one.holders.index(-1)] = row
            one.free -= slots
            one.cpus -= workers * gang.cpus_per_worker
        self.where[row] = placement
        self.decisions.append(Start(row, placement))

    def reserve(self, row: int) -> None:
        """The earliest nodes; of equals those with the fewest slots whose end nobody knows, then the lowest."""
        gang, allowed = self.jobs.gang_of(row), self.allowed(row)
        found: list[tuple[float, int, tuple[int, ...]]] = []
        for has_gpus in (True,) if gang.gpus_per_worker else (False, True):
            fit = [one for one in self.machines if one.usable and one.has_gpus == has_gpus]
            for kind in {one.type for one in fit if gang.accelerator_type in (None, one.type)} if not found else ():
                same = [one for one in fit if one.type == kind]
                mine = [one for one in same if allowed is None or kind in allowed]
                spanning = has_gpus == (gang.gpus_per_worker > 0) and spans(same, gang)
                nodes = self.whole_nodes(mine, gang) if spanning else self.one_node(mine, gang)
                found += [nodes] if nodes is not None else []
        if found:
            at_s, _, chosen = min(found)
            at_s = max(at_s, self.snapshot.now_s) if at_s < math.inf else self.snapshot.now_s
            self.reservation = Reservation(row, chosen, at_s)
            for node in chosen:
                self.machines[node].reserved_s = at_s

    def one_node(self, mine: list[Machine], gang: Gang) -> tuple[float, int, tuple[int, ...]] | None:
        large = [one for one in mine if self.may_hold(one, gang) >= gang.num_workers]
        return min(((*self.free_at(one, gang.num_workers, gang), (one.number,)) for one in large), default=None)

    def whole_nodes(self, mine: list[Machine], gang: Gang) -> tuple[float, int, tuple[int, ...]] | None:
        holds = {one.number: self.may_hold(one, gang) for one in mine if -3 not in one.holders}
        whole = [
            (*self.free_at(one, holds[one.number], gang, one.size), one.number)
            for one in mine
            if holds.get(one.number, 0) > 0
        ]
        chosen: list[tuple[float, int, int]] = []
        for one in sorted(whole):
            if sum(holds[number] for *_, number in chosen) < gang.num_workers:
                chosen.append(one)
        if sum(holds[number] for *_, number in chosen) < gang.num_workers:
            return None
        numbers = tuple(number for *_, number in chosen)
        return max(at for at, *_ in chosen), sum(unknown for _, unknown, _ in chosen), numbers

    def may_hold(self, one: Machine, gang: Gang) -> int:
        """Workers that a node holds once only other programs are there."""
        foreign_cpus = int(self.snapshot.cluster.foreign_cpus[one.number])
        by_cpu = (one.all_cpus - foreign_cpus) // gang.cpus_per_worker
        slots = one.size - one.holders.count(-3)
        if one.has_gpus and not gang.gpus_per_worker:
            return by_cpu
        return min(by_cpu, slots // (gang.gpus_per_worker or gang.cpus_per_worker))

    def free_at(self, one: Machine, workers: int, gang: Gang, slots: int | None = None) -> tuple[float, int]:
        """When a node has room for the workers, and for how many ends it waits that nobody knows.

        `slots`: how many must be free; None: those of the workers.
        """
        each = gang.gpus_per_worker or (0 if one.has_gpus else gang.cpus_per_worker)
        held: dict[int, int] = {row: one.holders.count(row) for row in one.holders if row >= 0}
        slots_at = self._free_at(held, workers * each if slots is None else slots, one.free)
        cpus_held = {
            row: on * self.jobs.gang_of(row).cpus_per_worker
            for row, placement in self.where.items()
            for node, on in placement
            if node == one.number and one.has_gpus
        }
        if not one.has_gpus:
            return slots_at
        jobs_at = self._free_at(cpus_held, workers * gang.cpus_per_worker, one.cpus, by_job=True)
        return max(slots_at[0], jobs_at[0]), max(slots_at[1], jobs_at[1])

    def _free_at(self, held: Mapping[int, int], need: int, free: int, by_job: bool = False) -> tuple[float, int]:
        """When so much is free, and how many slots, or jobs, of unknown end must go for it."""
        at_s, unknown = self.snapshot.now_s, 0
        for row in sorted(held, key=lambda row: (self.end_of(row), -held[row])):
            if free >= need:
                break
            at_s = max(at_s, self.end_of(row))
            unknown += (1 if by_job else min(held[row], need - free)) if self.end_of(row) == math.inf else 0
            free += held[row]
        return at_s, unknown
