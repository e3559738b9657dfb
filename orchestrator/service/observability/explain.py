"""Explanations: why a job is in its state, and when it is expected to start."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.capacity.feasibility import check_can_ever_fit
from cluster.errors import BackendUnreachable, CapacityError
from orchestrator.api import WhyView
from orchestrator.controller.autoscaler_demand import format_growth
from orchestrator.controller.fair_share import Shares
from orchestrator.controller.job_cache import JobCache
from orchestrator.controller.ledger import Cluster, snapshot
from orchestrator.queue.node_rules import rules_by_node
from orchestrator.queue.records import Job, NodeRule, ray_submission_of
from orchestrator.queue.states import ENDED, DesiredState, State
from orchestrator.queue.store import Filter
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.expected_start import Expected, expected_starts, rough_start
from orchestrator.scheduling.forecast.why import Obstacle, Why, why
from orchestrator.scheduling.forecast.why_text import ends_are_known, format_expected, to_do, why_lines, why_reason
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.service.context.caller import ANYBODY, Caller
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability import state_text
from orchestrator.service.observability.state_text import StateExplanation

_KEPT_S = 5.0
_NEW_KEPT_S = 0.5  # for a job that the kept moment does not contain
_ANSWERS_KEPT = 1000
_ENDED_LATELY = 200
_SHARES_KEPT_S = 60.0
_FOR_WANT_OF_ROOM = frozenset({Obstacle.CLOSED, Obstacle.FULL, Obstacle.SCATTERED, Obstacle.BEHIND})
_RUN_FORWARD = 100  # most jobs ahead of a job for which the queue is simulated


@dataclass(frozen=True)
class _Moment:
    """The queue at one moment, a few seconds ago at most.

    `silent`: the machines do not answer, and their state is older.
    """

    snapshot: Snapshot
    jobs: tuple[Job, ...]
    row_of: dict[str, int]
    ran_s: tuple[float, ...]
    tenants: dict[str, Tenant]
    cluster: Cluster
    silent: bool
    rules: Mapping[str, NodeRule]


class Explainer:
    """Explains jobs to callers. Thread-safe. Results are kept for a few seconds."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._lock = threading.Lock()  # one thread computes, the others wait for the result
        self._cache = JobCache(context.store)
        self._moment: _Moment | None = None
        self._looked_s = -math.inf
        self._shares: Shares | None = None
        self._shares_until_s = 0.0
        self._answers: OrderedDict[tuple[str, int, str | None], WhyView] = OrderedDict()

    def why(self, job_id: str, caller: Caller = ANYBODY) -> WhyView:
        """Explain a job. Jobs that the caller may not see are not named.

        Raises:
            UnknownJob, StoreBroken.
        """
        store, now_s = self._context.store, self._context.clock.now_s()
        job = store.job(job_id)
        if job.state in ENDED:
            return _said(state_text.describe_ended(job, now_s))
        if job.state is not State.QUEUED:
            return _said(state_text.describe_active(job, now_s, self._context.machines.label))
        if job.wanted is not DesiredState.RUN:
            return _said(state_text.describe_paused_or_cancelled(job, now_s))
        if waits := self._waits_for(job, caller):
            return _said(waits)
        return self._of_the_queue(job, caller)

    def _waits_for(self, job: Job, caller: Caller) -> StateExplanation | None:
        """Describe the parents that a job waits for; None: it waits for none."""
        if not job.after:
            return None
        known = self._context.store.find(job.after)
        left = [known[one] for one in job.after if one in known and known[one].state is not State.SUCCEEDED]
        if not left:
            return None
        return state_text.describe_waiting_for_jobs(job, left, [_name(parent, caller) for parent in left])

    def _of_the_queue(self, job: Job, caller: Caller) -> WhyView:
        whose = None if caller.sees_all else caller.tenant
        with self._lock:
            moment = self._now()
            if moment is not None and job.job_id not in moment.row_of:  # the job is new
                moment = self._now(_NEW_KEPT_S)
            key = (job.job_id, job.changed, whose)
            if (known := self._answers.get(key)) is not None:
                return known
            found = self._explained(job, caller, moment)
            self._answers[key] = found
            while len(self._answers) > _ANSWERS_KEPT:
                self._answers.popitem(last=False)
            return found

    def _explained(self, job: Job, caller: Caller, moment: _Moment | None) -> WhyView:
        if moment is None:
            reason = f"{job.job_id} waits: the machines do not answer, and nothing is started until they do"
            return _said(
                StateExplanation(reason, next_step="wait; if they do not come back, ask the admin of the cluster")
            )
        if (unplanned := _why_not_planned(job, moment)) is not None:
            return _said(unplanned)
        found = why(moment.snapshot, self._context.policy, moment.row_of[job.job_id])
        expected = self._expected(moment, found) if moment.snapshot.waiting[found.row] else None
        names = [_name(one, caller) for one in moment.jobs]
        labels = moment.cluster.inventory.labels
        called = [labels.get(node, node) for node in moment.snapshot.cluster.names]
        known, ran = ends_are_known(found), bool(moment.ran_s)
        expects = "" if expected is None else format_expected(expected, known, ran)
        lines = [
            *why_lines(found, moment.snapshot, names, called, expects),
            state_text.describe_earlier_attempts(job),
            "the machines do not answer now: nothing is started until they do" if moment.silent else "",
            *state_text.describe_closed_nodes(found, moment.snapshot.cluster.names, moment.rules, called),
            state_text.describe_outside_programs(
                found, self._others(moment) if any(node.foreign for node in found.nodes) else ()
            ),
            state_text.describe_limit(found, moment.tenants.get(job.tenant)),
            format_growth(moment.cluster.inventory) if found.obstacle in _FOR_WANT_OF_ROOM else "",
        ]
        reason = why_reason(found, moment.snapshot, names)
        said = StateExplanation(reason, more=tuple(filter(None, lines)), next_step=to_do(found, job.job_id))
        if expected is None:
            return _said(said)
        starts = (expected.start_s, expected.earliest_s, expected.latest_s)
        start, earliest, latest = (None if at is None else moment.snapshot.now_s + at for at in starts)
        return _said(said, start, earliest, latest, is_guess=not ran and not known, expected=expects)

    def _others(self, moment: _Moment) -> list[str]:
        """Return programs that may be the external use.

        Programs that queued their job here by `ray job submit` are left out: they hold no slots.
        """
        submissions = {ray_submission_of(job) for job in moment.jobs}
        return [other for other in self._context.machines.others() if other not in submissions]

    def _expected(self, moment: _Moment, found: Why) -> Expected | None:
        """Return the expected start. None: it cannot start on the present nodes, but the autoscaler may add more."""
        expected = self._of_these_nodes(moment, found)
        return None if expected.start_s is None and moment.cluster.inventory.most_more else expected

    def _of_these_nodes(self, moment: _Moment, found: Why) -> Expected:
        """Simulate the queue for a job near its head, without the jobs behind it; estimate roughly for others."""
        before = [row for row, _ in found.before]
        if len(before) > _RUN_FORWARD:
            return rough_start(moment.snapshot, before, moment.ran_s)
        rows = [*moment.snapshot.running.nonzero()[0].tolist(), *before, found.row]
        jobs = [moment.jobs[row] for row in rows]
        part = snapshot(jobs, {}, moment.cluster, moment.snapshot.now_s)
        row = len(rows) - 1
        return expected_starts(part, self._context.policy, [row], moment.ran_s)[row]

    def _now(self, kept_s: float = _KEPT_S) -> _Moment | None:
        """Return the kept moment, refreshed if it is too old. None: the machines have never answered."""
        if time.monotonic() >= self._looked_s + kept_s:
            self._moment = self._look()
            self._answers.clear()
            self._looked_s = time.monotonic()
        return self._moment

    def _look(self) -> _Moment | None:
        store, now_s = self._context.store, self._context.clock.now_s()
        machines = self._context.machines
        try:
            inventory, silent = machines.inventory(), False
        except BackendUnreachable:
            known = machines.last_known()
            if known is None:
                return None
            inventory, silent = known, True
        self._cache.read()
        jobs, tenants = tuple(self._cache.jobs), tuple(store.tenants())
        rules = rules_by_node(store.node_rules(), inventory.nodes)
        cluster = Cluster(
            inventory,
            tenants,
            self._shares_now(now_s).advance(jobs, now_s),
            closed=frozenset(rules),
            # All jobs that stop, and not only slow ones: their nodes are not free yet.
            slow=frozenset(job.job_id for job in jobs if job.state is State.STOPPING),
            gpu_hours=self._context.usage_months.gpu_hours(tenants),
        )
        ended = store.jobs(Filter(states=(State.SUCCEEDED, State.FAILED)), limit=_ENDED_LATELY)
        return _Moment(
            snapshot(jobs, {}, cluster, now_s),
            jobs,
            {job.job_id: row for row, job in enumerate(jobs)},
            tuple(job.attained_s for job in ended if job.attained_s > 0),
            {tenant.name: tenant for tenant in tenants},
            cluster,
            silent,
            rules,
        )

    def _shares_now(self, now_s: float) -> Shares:
        """Return the shares. They are read from the store once a minute, and carried forward in between."""
        if self._shares is None or time.monotonic() >= self._shares_until_s:
            half_life_s = self._context.policy.share_half_life_s
            used_s = self._context.store.decayed_use(now_s, half_life_s)
            self._shares = Shares(used_s, now_s, half_life_s)
            self._shares_until_s = time.monotonic() + _SHARES_KEPT_S
        return self._shares


def _name(job: Job, caller: Caller) -> str:
    return job.job_id if caller.may_see(job.tenant) else f"a job of tenant {job.tenant}"


def _why_not_planned(job: Job, moment: _Moment) -> StateExplanation | None:
    """Return why no plan can start a job, whatever the other jobs do; None: a plan can. Pure."""
    if job.job_id not in moment.row_of:
        return StateExplanation(f"{job.job_id} is new in the queue: ask again in a few seconds")
    try:
        check_can_ever_fit(job.gang, moment.cluster.inventory)
    except CapacityError as error:
        next_step = (
            f"wait until such nodes are added; or fleetune cancel {job.job_id}, and submit it with a smaller gang"
        )
        return StateExplanation(f"{job.job_id} waits for machines that are not there: {error}", next_step=next_step)
    tenant = moment.tenants.get(job.tenant)
    if tenant is not None and job.gang.gpus_per_worker and job.tenant in moment.cluster.spent:
        return state_text.describe_hours_used_up(job, tenant, moment.cluster.gpu_hours, moment.snapshot.now_s)
    return None


def _said(
    found: StateExplanation,
    start_s: float | None = None,
    earliest_s: float | None = None,
    latest_s: float | None = None,
    **more: Any,
) -> WhyView:
    starts: dict[str, Any] = {"expected_start_s": start_s, "earliest_start_s": earliest_s, "latest_start_s": latest_s}
    return WhyView(text=found.text, reason=found.reason, next_step=found.next_step, **starts, **more)
