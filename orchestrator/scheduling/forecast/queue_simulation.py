"""A simulated cluster and its queue, carried forward in time by plans of the real scheduler.

`simulate` replays traces with it, and `expected_start` forecasts the current queue. The simulation knows how long each
job really takes. Plans do not: they see what a run would have measured.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import Occupancy, Placement, placement_of, workers_in
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import RUNNING, WAITING, Floats, JobTable
from orchestrator.scheduling.plan.decisions import Cause, Plan, Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot

TICK_S = 300.0  # seconds between passes while a job waits and no event happens


class EndReason(StrEnum):
    """Why an attempt ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    MOVED = "moved"  # interrupted, and started again at once: elsewhere, or with more or fewer workers
    NODE_FAILED = "node_failed"


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job: from a start to an interruption, or to the end.

    `lost_s` is the work that the interruption at its end added: the cost of an interruption and, if a node failed, also
    the work since the newest checkpoint. It is 0 if the job finished.
    """

    row: int  # of the job: in the simulation, or in the trace that it replays
    start_s: float
    end_s: float
    placement: Placement
    reason: EndReason
    lost_s: float = 0.0


@dataclass(frozen=True)
class Measuring:
    """What simulated runs know about their remaining time.

    Attributes:
        after_s: running time before a job can tell its remaining time; 0: even before its first start.
        exact: tell the true time, instead of the true time times the job's own error.
    """

    after_s: float = 600.0
    exact: bool = False


class QueueSimulation:
    """A simulation of the queue. Time passes in `advance` only. Rows are those of `jobs`."""

    def __init__(
        self,
        cluster: Occupancy,
        tenants: Sequence[Tenant],
        policy: Policy,
        measuring: Measuring,
        on_end: Callable[[Attempt], None],
    ) -> None:
        self.now_s = 0.0
        self.jobs = JobTable()
        self.cluster, self.tenants, self.policy = cluster, tuple(tenants), policy
        self.passes, self.tick_s, self.waiting = 0, TICK_S, 0
        self._measuring, self._on_end = measuring, on_end
        self._used_s = np.zeros(len(self.tenants))
        self._in_use = np.zeros(len(self.tenants))  # slots: GPUs, or CPUs of gangs without GPUs
        self._left_s = np.zeros(0)  # [rows]; true running time left at the attempt's start, or now if it waits
        self._error = np.ones(0)  # [rows]; measured remaining time / true remaining time
        self._tells = np.zeros(0, bool)  # [rows]; whether the remaining time was known from the beginning
        self._most_left_s = np.zeros(0)  # [rows]; as `_left_s`, under the job's max_runtime_s; inf: no maximum
        self._sizes: dict[int, tuple[int, ...]] = {}  # numbers of workers that each elastic job can have, ascending
        self._where: dict[int, Placement] = {}
        self._ends: list[tuple[float, int, float]] = []  # heap of (end, row, start)

    @staticmethod
    def of(
        snapshot: Snapshot, policy: Policy, left_s: Floats, measuring: Measuring, on_end: Callable[[Attempt], None]
    ) -> QueueSimulation:
        """Start a simulation from a snapshot, which is not changed.

        Args:
            left_s: [rows]; running time that each job is assumed to have left.
        """
        simulation = QueueSimulation(snapshot.cluster.copy(), snapshot.tenants, policy, measuring, on_end)
        jobs = simulation.jobs = snapshot.jobs.copy()
        simulation._sizes = dict(snapshot.sizes)
        simulation.now_s = snapshot.now_s
        simulation._used_s = snapshot.used_s.copy()
        elapsed = np.where(snapshot.running, snapshot.now_s - jobs.started_s, 0.0)
        simulation._left_s, simulation._error = left_s + elapsed, np.ones(jobs.rows)
        simulation._most_left_s, simulation._tells = jobs.most_left_s + elapsed, ~np.isnan(jobs.remaining_s)
        simulation.waiting = int((jobs.state == WAITING).sum())
        for row in snapshot.running.nonzero()[0].tolist():
            simulation._where[row] = placement_of(row, jobs.gang_of(row), simulation.cluster)
            simulation._in_use[jobs.tenant[row]] += jobs.size[row]
            heapq.heappush(simulation._ends, (snapshot.now_s + float(left_s[row]), row, float(jobs.started_s[row])))
        return simulation

    def submit(self, gang: Gang, work_s: float, error: float = 1.0, **values: float) -> int:
        """Add a job that arrives now and takes `work_s` of running time. Returns its row."""
        row = self.jobs.add(
            gang, state=WAITING, submitted_s=self.now_s, waiting_since_s=self.now_s, preemptible=True, **values
        )
        more = self.jobs.rows - len(self._left_s)
        if more > 0:
            self._left_s = np.concatenate([self._left_s, np.zeros(more)])
            self._error = np.concatenate([self._error, np.ones(more)])
            self._tells = np.concatenate([self._tells, np.zeros(more, bool)])
            self._most_left_s = np.concatenate([self._most_left_s, np.full(more, np.inf)])
        self._left_s[row], self._error[row] = work_s, error
        self._tells[row], self._most_left_s[row] = False, values.get("most_left_s", math.inf)
        self.waiting += 1
        return row

    @property
    def next_event_s(self) -> float:
        """When the next running job ends or the next pass is due; inf: nothing more will happen."""
        end = self._ends[0][0] if self._ends else math.inf
        if not self.waiting:
            return end
        if self._ends:
            return min(end, self.now_s + self.tick_s)
        later = self.jobs.not_before_s[self.jobs.state == WAITING].tolist()
        return min((at for at in later if at > self.now_s), default=math.inf)

    def advance(self, to_s: float) -> None:
        """Advance the clock to `to_s`, and finish the jobs that end by then."""
        while self._ends and self._ends[0][0] <= to_s:
            end_s, row, start_s = heapq.heappop(self._ends)
            if row in self._where and self.jobs.started_s[row] == start_s and self.jobs.state[row] == RUNNING:
                self._pass_time(end_s)
                self._leave(row, EndReason.FINISHED, 0.0)
                self.jobs.remove(row)
                self._sizes.pop(row, None)
        self._pass_time(to_s)

    def decide(self) -> Plan:
        """Make a plan and carry it out."""
        made = plan(self.snapshot(), self.policy)
        self.passes += 1
        started = {one.row for one in made.decisions if isinstance(one, Start)}
        for decision in made.decisions:
            if isinstance(decision, Start):
                self._begin(decision.row, decision.placement)
            else:
                moved = decision.row in started or decision.cause is Cause.MOVED
                lost_s = float(self.jobs.interruption_cost_s[decision.row])
                reason = EndReason.MOVED if moved else EndReason.PREEMPTED
                self._stop(decision.row, reason, lost_s, counts=decision.cause is not Cause.RESIZED)
        return made

    def snapshot(self) -> Snapshot:
        jobs = self.jobs
        running = jobs.state == RUNNING
        elapsed = (self.now_s - jobs.started_s) * running
        left = self._left_s[: jobs.rows] - elapsed
        jobs.most_left_s = self._most_left_s[: jobs.rows] - elapsed
        if self._measuring.exact:
            jobs.remaining_s = left
        else:
            told = self._tells[: jobs.rows] | (jobs.attained_s + elapsed >= self._measuring.after_s)
            jobs.remaining_s = np.where(told, left * self._error[: jobs.rows], np.nan)
        return Snapshot(self.now_s, jobs, self.cluster, self.tenants, self._used_s, sizes=self._sizes)

    def fail(self, node: int, checkpoint_every_s: float) -> None:
        """Let a node die. Its jobs lose the work since their newest checkpoint, and wait again."""
        self.cluster.usable[node] = False
        for row in [row for row, placement in self._where.items() if any(one == node for one, _ in placement)]:
            elapsed = self.now_s - float(self.jobs.started_s[row])
            lost = elapsed % checkpoint_every_s + float(self.jobs.interruption_cost_s[row])
            self._stop(row, EndReason.NODE_FAILED, lost, counts=False)  # the scheduler did not stop it

    def repair(self, node: int) -> None:
        self.cluster.usable[node] = True

    def _pass_time(self, to_s: float) -> None:
        """Let each tenant's use decay, and add what it uses now (to first order within the step)."""
        step = to_s - self.now_s
        if step > 0:
            self._used_s = (self._used_s + self._in_use * step) * 0.5 ** (step / self.policy.share_half_life_s)
            self.now_s = to_s

    def _begin(self, row: int, placement: Placement) -> None:
        jobs = self.jobs
        self._resize(row, workers_in(placement))
        self.cluster.hold(row, jobs.gang_of(row), placement)
        self._where[row] = placement
        self._in_use[jobs.tenant[row]] += jobs.size[row]
        jobs.waited_s[row] += self.now_s - jobs.waiting_since_s[row]
        jobs.state[row], jobs.started_s[row] = RUNNING, self.now_s
        self.waiting -= 1
        heapq.heappush(self._ends, (self.now_s + float(self._left_s[row]), row, self.now_s))

    def _stop(self, row: int, reason: EndReason, lost_s: float, counts: bool = True) -> None:
        jobs = self.jobs
        elapsed = self.now_s - float(jobs.started_s[row])
        self._leave(row, reason, lost_s)
        jobs.attained_s[row] += elapsed
        self._left_s[row] += lost_s - elapsed
        self._most_left_s[row] -= elapsed
        if row in self._sizes:
            self._resize(row, self._sizes[row][0])
        jobs.interruptions[row] += counts
        jobs.state[row], jobs.waiting_since_s[row] = WAITING, self.now_s
        self.waiting += 1

    def _resize(self, row: int, num_workers: int) -> None:
        """Change the workers of a waiting elastic job. Running time is taken to be inverse to the number of workers."""
        before = self.jobs.gang_of(row).num_workers
        if num_workers != before:
            self.jobs.resize(row, num_workers)
            self._left_s[row] *= before / num_workers

    def _leave(self, row: int, reason: EndReason, lost_s: float) -> None:
        """Free the nodes of a job, and report the end of its attempt."""
        jobs = self.jobs
        placement = self._where.pop(row)
        self.cluster.release(row, jobs.gang_of(row), placement)
        self._in_use[jobs.tenant[row]] -= jobs.size[row]
        self._on_end(Attempt(row, float(jobs.started_s[row]), self.now_s, placement, reason, lost_s))
