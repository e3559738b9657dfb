"""Random queues on random clusters, and the policies that their plans are made by."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st

from cluster.capacity.inventory import Node
from orchestrator.queue.tenants import Quota, Tenant
from orchestrator.scheduling.policy import DEFAULT, POLICIES
from orchestrator.scheduling.snapshot import Snapshot
from tests.support.scheduling import HOUR, NOW_S, Job, snapshot
from tests.support.slow_scheduler import machines_of, place

PATIENT = replace(DEFAULT, name="without preemption", preemption=False)
PLAIN = [POLICIES["fifo"], POLICIES["easy"], POLICIES["fair"], PATIENT]
QUICK = replace(DEFAULT, name="quick", margin=1.2, guarded_after_s=60.0)
PREEMPTING = [DEFAULT, POLICIES["las"], QUICK]

few = settings(max_examples=60)
many = settings(max_examples=150)


@dataclass(frozen=True)
class Drawn:
    """What a random snapshot is made of."""

    machines: Sequence[Node]
    jobs: Sequence[Job]
    tenants: Sequence[Tenant]
    used_s: Sequence[float]

    def snapshot(self, order: Sequence[int] | None = None) -> Snapshot:
        jobs = self.jobs if order is None else [self.jobs[row] for row in order]
        return snapshot(self.machines, jobs, self.tenants, self.used_s)


def drawn(by_type: bool = False, tight_cpus: bool = True, elastic: bool = False) -> st.SearchStrategy[Drawn]:
    """Random snapshots. by_type: guarantees and limits of single types too. elastic: half of the jobs are."""

    def build(seed: int, machines: int, jobs: int) -> Drawn:
        made = _Draw(random.Random(seed), by_type, tight_cpus).draw(machines, jobs)
        chance = random.Random(seed + 1)
        return replace(made, jobs=[_elastic(job, chance) for job in made.jobs]) if elastic else made

    return st.builds(build, st.integers(0, 1 << 32), st.integers(1, 6), st.integers(0, 14))


def _elastic(job: Job, chance: random.Random) -> Job:
    """Perhaps with other numbers of workers: above what it waits for, to both sides of what it has."""
    workers = job.gang.num_workers
    more = chance.sample([workers + 1, workers + 2, 2 * workers, 4 * workers], k=2)
    fewer = chance.sample(range(1, workers), k=min(2, workers - 1)) if job.on else []
    return replace(job, sizes=tuple(sorted({*fewer, workers, *more}))) if chance.random() < 0.5 else job


class _Draw:
    def __init__(self, chance: random.Random, by_type: bool, tight_cpus: bool) -> None:
        self.chance, self.by_type, self.tight_cpus = chance, by_type, tight_cpus
        self.types: list[str | None] = chance.choice([[None], ["A"], ["A", "B"], [None, "A"]])

    def maybe(self, share: float) -> bool:
        return self.chance.random() < share

    def draw(self, machines: int, jobs: int) -> Drawn:
        chance = self.chance
        inventory = [self.node() for _ in range(machines)]
        tenants = [self.tenant(name) for name in "abc"[: chance.randint(1, 3)]]
        made: list[Job] = []
        for number in range(jobs):
            made.append(self.job(number, inventory, made, tenants))
        return Drawn(inventory, made, tenants, [chance.choice([0.0, 1e4, 1e6, 3e6]) for _ in tenants])

    def node(self) -> Node:
        chance = self.chance
        if self.maybe(0.1):  # CPU nodes are of no type
            return Node("", cpus=chance.randint(1, 8), usable=self.maybe(0.8))
        size = chance.choice([1, 2, 3, 4, 4, 6, 8, 8, 8])
        cpus = chance.choice([size, 2 * size]) if self.tight_cpus else 96
        foreign = chance.randint(0, size) if self.maybe(0.15) else 0
        return Node("", cpus, size, chance.choice(self.types), self.maybe(0.85), foreign)

    def tenant(self, name: str) -> Tenant:
        return Tenant(name, self.chance.choice([1.0, 1.0, 3.0]), self.quota(12), self.quota(16))

    def quota(self, most: int) -> Quota:
        keys = [key for key in dict.fromkeys([None, *self.types]) if self.maybe(0.3)]
        return tuple((key, self.chance.randint(1, most)) for key in keys if self.by_type or key is None)

    def job(self, number: int, inventory: list[Node], others: list[Job], tenants: list[Tenant]) -> Job:
        """Times differ from those of all other jobs, so that nothing depends on the number of a row."""
        chance, own = self.chance, number * 1.37
        by_cpu = self.maybe(0.08)
        each = 0 if by_cpu else chance.choice([1, 1, 1, 1, 2])
        left = (
            math.nan if self.maybe(0.2) else chance.choice([60.0, 600.0, HOUR, 2 * HOUR, 10 * HOUR, 100 * HOUR]) + own
        )
        made = Job(
            str(number),
            gpus=max(1, each) * chance.choice([1, 1, 2, 2, 3, 4, 4, 6, 8, 8, 12, 16]),
            gpus_per_worker=each,
            cpus=chance.choice([1, 1, 1, 2]) if self.tight_cpus else 1,
            type=None if by_cpu else chance.choice([None, None, *self.types]),
            held=self.maybe(0.08),
            tenant=chance.randrange(len(tenants)),
            priority=chance.choice([0, 0, 0, 0, 1, 2]),
            left_s=left,
            most_left_s=chance.choice([math.inf, math.inf, 900.0 + own, 20 * HOUR + own]),
            preemptible=self.maybe(0.75),
            submitted_s=chance.random() * 1000,
            not_before_s=chance.choice([-math.inf] * 12 + [NOW_S, NOW_S + 10]),
            waiting_s=chance.choice([0.0, 100.0, 2 * HOUR, 10 * HOUR, 50 * HOUR]) + own,
            waited_s=chance.choice([0.0, 0.0, HOUR, 20 * HOUR]) + own,
            running_s=chance.choice([0.0, 599.0, 700.0, 1100.0, 30 * HOUR]) + own / 100,
            attained_s=chance.choice([0.0, 3 * HOUR]),
            interruptions=chance.choice([0, 0, 0, 1, 25, 99, 100]),
            cost_s=chance.choice([0.0, 30.0, 300.0, 3000.0]) + own,
        )
        if by_cpu or made.held or self.maybe(0.35):
            return made
        return self.running(made, inventory, others, tenants[made.tenant])

    def running(self, job: Job, inventory: list[Node], others: list[Job], tenant: Tenant) -> Job:
        """The job on nodes where it is allowed to be, if there are any."""
        held = sum(other.gpus for other in others if other.on and other.tenant == job.tenant)
        if any(held + job.gpus > most for _, most in tenant.limit):
            return job
        now = snapshot(inventory, others)
        free = [one for one in machines_of(now) if one.has_gpus and one.free >= job.gpus]
        free = [one for one in free if job.type in (None, one.type) and one.cpus >= job.gang.num_workers * job.cpus]
        if free and self.maybe(0.8):
            return replace(job, on={self.chance.choice(free).number: job.gang.num_workers}, not_before_s=-math.inf)
        placement = place(machines_of(now), job.gang)
        return replace(job, on=dict(placement), not_before_s=-math.inf) if placement else job
