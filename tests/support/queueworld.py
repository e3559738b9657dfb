"""A queue on a made-up cluster: store, backend, and as many servers as a test wants, on one clock that it moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.backend import Backend, Launch
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Growth, Inventory, Node
from cluster.testing import FakeBackend, FakeClock, FakeCluster, double_runs, most_gpus
from orchestrator.controller.controller import Controller
from orchestrator.controller.drivers import LaunchOf
from orchestrator.controller.leadership import LeaderElection
from orchestrator.controller.machines import UNNAMED, Machines, MachinesGuard
from orchestrator.queue.clock import Clock, Timing
from orchestrator.queue.records import Job, Measured, NewJob
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, State
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant
from orchestrator.store import open_store

START_S = 1_000_000.0
TERM_S = 15.0
NO_GROWTH = Growth()
TENANTS = (Tenant("a"), Tenant("b"))


def launch_of(job: Job) -> Launch:
    gpus = " ".join(f"{node}={workers * job.gang.gpus_per_worker}" for node, workers in job.placement)
    return Launch(job.submission, ("python", "-m", "something"), metadata={"gpus": gpus})


def new(name: str, gpus: int = 1, tenant: str = "a", **more: Any) -> NewJob:
    return NewJob(name, "command", tenant, "{}", Gang(gpus, 1, 1), "test", **more)


class QueueWorld:
    """`gpus` of each node; tenants a and b."""

    def __init__(
        self,
        *gpus: int,
        url: str = "sqlite://",
        tenants: Sequence[Tenant] = (Tenant("a"), Tenant("b")),
        growth: Growth = NO_GROWTH,
    ) -> None:
        self.clock = FakeClock(START_S)
        nodes = Inventory(tuple(Node(f"n{number}", cpus=64, gpus=size) for number, size in enumerate(gpus)), growth)
        self.cluster = FakeCluster(nodes, self.clock)
        self.backend = FakeBackend(self.cluster)
        self.store: Store = open_store(url)
        for tenant in tenants:
            self.store.put_tenant(tenant, START_S)
        self.server = self.another()

    def another(
        self,
        name: str = "first",
        store: Store | None = None,
        backend: Backend | None = None,
        launch: LaunchOf = launch_of,
        takes_over: bool = False,
        silent_s: float | None = None,
        clock: Clock | None = None,
        machines: Machines = UNNAMED,
        session: Callable[[], str] = lambda: "",
    ) -> Controller:
        """A server of its own, on the same store and machines, or on what stands before them."""
        store = store or self.store
        clock = clock or self.clock
        election = LeaderElection(store, clock, name, f"http://{name}", TERM_S)
        timing = Timing(grace_s=30.0, slow_s=60.0, absent_s=2.0, doubt_s=20.0, register_s=300.0, silent_s=silent_s)
        guard = MachinesGuard(store, machines, session, takes_over)
        backend = backend or self.backend
        return Controller(store, backend, clock, election, launch, timing=timing, takes_over=takes_over, guard=guard)

    def submit(self, *jobs: NewJob) -> list[str]:
        return [job.job_id for job in self.store.submit(jobs, self.clock())]

    def job(self, job_id: str) -> Job:
        return self.store.job(job_id)

    def states(self, *ids: str) -> list[State]:
        return [self.job(job_id).state for job_id in ids]

    def speak(self, *ids: str, at_s: float | None = None, **said: Any) -> None:
        """Drivers are heard, as if they had spoken to a server. `at_s`: by the server's clock."""
        jobs = map(self.job, ids)
        told = [Measured(job.job_id, job.attempt, **said) for job in jobs]
        self.store.measure(told, self.clock() if at_s is None else at_s)

    def passes(self, number: int = 1, each_s: float = 1.0) -> None:
        """Time goes on, and then the server looks."""
        for _ in range(number):
            self.clock.advance(each_s)
            self.server.step()
            self.check()

    def until_all_end(self, each_s: float = 5.0, most: int = 2000) -> None:
        for _ in range(most):
            if all(job.state in ENDED for job in self.store.jobs(limit=10_000)):
                return
            self.passes(1, each_s)
        raise AssertionError([job for job in self.store.jobs(limit=10_000) if job.state not in ENDED])

    def check(self) -> None:
        """What must hold at all times."""
        history = self.backend.history()
        assert not double_runs(history)
        sizes = {node.node_id: node.gpus for node in self.backend.inventory().nodes}
        most = most_gpus(history)
        assert all(most[node] <= sizes.get(node, most[node]) for node in most), (most, sizes)
        held = {(lease.job_id, lease.attempt) for lease in self.store.leases(held=True)}
        jobs = self.store.jobs(limit=10_000)
        assert held == {(job.job_id, job.attempt) for job in jobs if job.state in HOLDS_A_LEASE}
