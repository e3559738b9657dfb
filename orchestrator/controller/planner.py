"""Plans the queue in each pass, unless nothing has changed since the last plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.capacity.inventory import Inventory
from orchestrator.controller.autoscaler_demand import Demand, demand
from orchestrator.controller.fair_share import Shares
from orchestrator.controller.job_cache import JobCache
from orchestrator.controller.ledger import Cluster, Nominations, PlanResult, kept, orders, snapshot
from orchestrator.controller.own_waits import OwnWaits
from orchestrator.controller.set_aside import SetAside, without_faulty
from orchestrator.queue.clock import Clock, Timing
from orchestrator.queue.months import MonthUse
from orchestrator.queue.records import Job, NodeRule
from orchestrator.queue.retry import may_start_at_s
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import Policy


@dataclass(frozen=True)
class Planned:
    """A plan, and until when it holds.

    Attributes:
        of: the input of the plan, except the time.
        again_s: time at which to plan again although `of` is the same, in seconds since 1970.
    """

    result: PlanResult
    of: Any
    again_s: float


class Planner:
    """Plans the queue during one leadership. It keeps the use of the tenants, the nominations, and the last plan."""

    def __init__(
        self, store: Store, clock: Clock, policy: Policy, timing: Timing, cache: JobCache, aside: SetAside
    ) -> None:
        """`aside`: gets the jobs that make planning fail."""
        self._store, self._clock, self._policy, self._timing = store, clock, policy, timing
        self._cache, self._aside = cache, aside
        now_s, half_life_s = clock.now_s(), policy.share_half_life_s
        self._shares = Shares(store.decayed_use(now_s, half_life_s), now_s, half_life_s)
        self._month: MonthUse | None = None  # None: no tenant has a limit of GPU-hours
        self._nominations: Nominations = {}
        self._cluster: Cluster | None = None  # as of the last pass
        self._last: Planned | None = None
        self._own_waits = OwnWaits()
        self._last_demand: tuple[Any, Demand, float] = (None, Demand(), 0.0)  # of what, which, until when
        # Jobs that the previous leader was stopping. Preempt nothing until they are gone: it is unknown for whom they
        # stop.
        self._inherited = {job.submission for job in cache.jobs if job.state is State.STOPPING}

    def plan(
        self, inventory: Inventory, rules: Mapping[str, NodeRule], slow: frozenset[str], now_s: float
    ) -> Planned | None:
        """Plan the queue; None: nothing waits or can grow, or the last plan still holds.

        Call `accept` once the transitions are written.

        Args:
            slow: ids of jobs that have taken long to stop.

        Raises:
            StoreBroken: the tenants cannot be read.
        """
        jobs = self._cache.jobs
        self._inherited &= {job.submission for job in jobs if job.state is State.STOPPING and job.job_id not in slow}
        tenants = tuple(self._store.tenants())
        cluster = self._cluster = Cluster(
            inventory,
            tenants,
            self._shares.advance(jobs, now_s),
            closed=frozenset(rules),
            slow=slow,
            gpu_hours=self._gpu_hours(tenants, jobs, now_s),
        )
        self._nominations = kept(jobs, self._nominations, cluster)
        of = (
            self._cache.newest,
            inventory,
            tuple(rules.items()),
            cluster.tenants,
            cluster.spent,
            slow,
            bool(self._inherited),
        )
        waits = [job for job in jobs if job.state is State.QUEUED and job.wanted is DesiredState.RUN]
        if not waits and not any(job.sizes and job.state is State.RUNNING for job in jobs):
            return None
        # If the input does not change, a new plan can differ by the passing of time only, so it is made rarely.
        if self._last is not None and self._last.of == of and now_s < self._last.again_s:
            return None
        policy = replace(self._policy, preemption=False) if self._inherited else self._policy
        return Planned(self._orders(jobs, cluster, policy, now_s), of, self._again_s(waits, now_s))

    def accept(self, planned: Planned) -> None:
        """Keep a plan whose transitions are written."""
        self._nominations, self._last = planned.result.nominations, planned

    def demand(self) -> Demand:
        """Return the demand for an autoscaler, of the queue as the last pass left it."""
        if self._cluster is None:
            return Demand()
        of = (
            self._cache.newest,
            self._cluster.inventory,
            self._cluster.tenants,
            self._cluster.closed,
            self._cluster.spent,
            tuple(self._nominations.items()),
        )
        now_s, jobs = self._clock.now_s(), self._cache.jobs
        if of != self._last_demand[0] or now_s >= self._last_demand[2]:
            made = demand(jobs, self._nominations, self._cluster, self._policy, now_s)
            self._last_demand = of, made, self._again_s([job for job in jobs if job.state is State.QUEUED], now_s)
        return self._last_demand[1]

    def _again_s(self, waits: Iterable[Job], now_s: float) -> float:
        """Return when a plan of the same input is made again: when a job's pause is over, or at least now and then."""
        later_s = [at_s for job in waits if (at_s := may_start_at_s(job)) > now_s]
        return min([now_s + self._timing.replan_s, *later_s])

    def _gpu_hours(self, tenants: Sequence[Tenant], jobs: Sequence[Job], now_s: float) -> Mapping[str, float]:
        """Return the GPU-hours of this month by tenant; empty: no tenant has a limit on them."""
        if all(tenant.restrictions.max_gpu_hours_per_month is None for tenant in tenants):
            self._month = None
            return {}
        if self._month is None:
            self._month = MonthUse(self._store.month_totals(now_s, now_s, held=False), now_s)
        return self._month.advance(jobs, now_s)

    def _orders(self, jobs: Sequence[Job], cluster: Cluster, policy: Policy, now_s: float) -> PlanResult:
        """Plan the jobs. Jobs that make planning fail are set aside."""

        def of(some: Sequence[Job]) -> PlanResult:
            ids = {job.job_id for job in some}
            nominations = {job_id: places for job_id, places in self._nominations.items() if job_id in ids}
            waited = [self._own_waits.without(job, now_s) for job in some]
            made = snapshot(waited, nominations, cluster, now_s)
            self._own_waits.look(some, made, cluster)
            return orders(some, plan(made, policy), nominations, cluster)

        planned = [
            job
            for job in jobs
            if job.state is not State.QUEUED or (job not in self._aside and self._cache.may_be_planned(job))
        ]
        found = without_faulty(planned, of, lambda job, error: self._aside.note(job, error, now_s))
        self._own_waits.go_on(jobs)
        return replace(found, transitions=tuple(self._own_waits.told(one, now_s) for one in found.transitions))
