"""Replays a trace in order of time (arrivals, failures, ends), with a plan at each of these times."""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.capacity.occupancy import Occupancy
from cluster.errors import InputError
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.queue_simulation import Attempt, EndReason, Measuring, QueueSimulation
from orchestrator.scheduling.job_table import WAITING
from orchestrator.scheduling.policy import RankBy, policy_named
from orchestrator.simulate.values import Setup, Simulated, TraceJob

_JITTER_S = 10.0
_REPORT_EVERY = 500  # passes between reports of progress
_MOST_FAILURES = 10_000  # of one job, until the simulation is given up
_MOST_USELESS = 100_000  # failures and repairs in a row without the end of a job, until the simulation is given up
# These simple policies get the exact run times, like a scheduler whose jobs state exact time limits.
_EXACT_TIMES = (RankBy.SUBMITTED, RankBy.SHARE)

OnWait = Callable[[QueueSimulation, int, int], None]


def simulate(
    jobs: Sequence[TraceJob],
    setup: Setup,
    progress: Callable[[float], None] | None = None,
    on_wait: OnWait | None = None,
) -> Simulated:
    """Simulate a trace to its end.

    Args:
        progress: called regularly with the share of jobs that have ended.
        on_wait: called after the pass of its arrival for each job that did not start, with the simulation, the job's
            row in it and its row in the trace. It must not change the simulation.
    """
    return _Run(jobs, setup, progress, on_wait).run()


class _Run:
    def __init__(
        self,
        jobs: Sequence[TraceJob],
        setup: Setup,
        progress: Callable[[float], None] | None,
        on_wait: OnWait | None,
    ) -> None:
        self._jobs, self._setup, self._progress, self._on_wait = tuple(jobs), setup, progress, on_wait
        self._tenants = {name: number for number, name in enumerate(dict.fromkeys(job.tenant for job in jobs))}
        size = setup.gpus_per_node
        policy = policy_named(setup.policy)
        inventory = Inventory(tuple(Node(f"node-{number}", cpus=size, gpus=size) for number in range(setup.nodes)))
        self._simulation = QueueSimulation(
            Occupancy.of(inventory),
            [Tenant(name) for name in self._tenants],
            policy,
            Measuring(setup.measured_after_s, exact=policy.order in _EXACT_TIMES),
            self._ended,
        )
        # Separate generators, so that two clusters see the same jobs.
        self._delays, self._errors, self._failure_times = (
            random.Random(3 * setup.jitter + number) for number in range(3)
        )
        self._job_of: dict[int, int] = {}  # row of the simulation -> row of the trace
        self._attempts: list[Attempt] = []
        self._finished = 0
        self._failed = Counter[int]()
        self._useless = self._had_finished = 0  # failures and repairs since a job has ended, and how many had by then
        self._failures: list[tuple[float, int, bool]] = []  # heap of (time, node, whether it is a repair)

    def run(self) -> Simulated:
        began = time.perf_counter()
        arrivals = self._arrivals()
        self._plan_failures()
        simulation, at = self._simulation, 0
        while self._finished < len(self._jobs):
            next_arrival = arrivals[at][0] if at < len(arrivals) else math.inf
            next_failure = self._failures[0][0] if self._failures else math.inf
            now = min(next_arrival, next_failure, simulation.next_event_s)
            simulation.advance(now)
            while self._failures and self._failures[0][0] <= now:
                self._fail_or_repair()
            arrived = list[int]()
            while at < len(arrivals) and arrivals[at][0] <= now:
                arrived.append(self._submit(arrivals[at][1]))
                at += 1
            if simulation.waiting:
                simulation.decide()
            if self._on_wait is not None:
                for row in arrived:
                    if simulation.jobs.state[row] == WAITING:
                        self._on_wait(simulation, row, self._job_of[row])
            if self._progress is not None and simulation.passes % _REPORT_EVERY == 0:
                self._progress(self._finished / len(self._jobs))
        return Simulated(self._jobs, tuple(self._attempts), self._setup, time.perf_counter() - began)

    def _arrivals(self) -> list[tuple[float, int]]:
        most_s = _JITTER_S if self._setup.jitter else 0.0
        return sorted((job.submit_s + self._delays.uniform(0, most_s), row) for row, job in enumerate(self._jobs))

    def _submit(self, number: int) -> int:
        """Submit a job of the trace. Returns its row in the simulation."""
        job, setup = self._jobs[number], self._setup
        row = self._simulation.submit(
            Gang(job.num_gpus, 1, 1),
            job.duration_s,
            math.exp(self._errors.gauss(0.0, setup.noise)),
            tenant=self._tenants[job.tenant],
            priority=job.priority,
            interruption_cost_s=setup.preemption_cost_s,
        )
        self._job_of[row] = number
        return row

    def _ended(self, attempt: Attempt) -> None:
        self._finished += attempt.reason is EndReason.FINISHED
        job = self._job_of[attempt.row]
        if attempt.reason is EndReason.NODE_FAILED:
            self._count_failure(job)
        self._attempts.append(replace(attempt, row=job))

    def _count_failure(self, job: int) -> None:
        """Count an interruption by a failing node. Raises InputError if the job may never end."""
        self._failed[job] += 1
        if self._failed[job] > _MOST_FAILURES:
            gpus, takes_s = self._jobs[job].num_gpus, self._jobs[job].duration_s
            raise InputError(
                f"row {job} of the trace ({gpus} GPUs for {takes_s:g} s) was interrupted by failing nodes "
                f"{_MOST_FAILURES:,} times and has not ended: give a lower --failures-per-node-day"
            )

    def _plan_failures(self) -> None:
        rate = self._setup.failures_per_node_day
        for node in range(self._setup.nodes) if rate and self._jobs else ():
            at_s = self._jobs[0].submit_s + self._failure_times.expovariate(rate) * 86_400.0
            heapq.heappush(self._failures, (at_s, node, False))

    def _fail_or_repair(self) -> None:
        at_s, node, comes_back = heapq.heappop(self._failures)
        self._useless = 0 if self._finished > self._had_finished else self._useless + 1
        self._had_finished = self._finished
        if self._useless > _MOST_USELESS:
            raise InputError(
                f"nodes have failed or come back {_MOST_USELESS:,} times, and no job has ended meanwhile: give a lower "
                "--failures-per-node-day"
            )
        if comes_back:
            self._simulation.repair(node)
            again = at_s + self._failure_times.expovariate(self._setup.failures_per_node_day) * 86_400.0
        else:
            self._simulation.fail(node, self._setup.checkpoint_every_s)
            again = at_s + self._setup.repair_s
        heapq.heappush(self._failures, (again, node, not comes_back))
