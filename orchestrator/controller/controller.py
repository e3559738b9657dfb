"""The controller: look at store and machines, decide by pure functions, write the decisions, and only then act.

What to do to the machines follows from the states of the jobs alone: a STARTING job without a driver is started, a
STOPPING job with a driver is stopped. If a server is killed anywhere in a pass, the next pass does what is left, on
this server or another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cluster.backend import Backend, Launch, Phase, Submission
from cluster.capacity.inventory import Inventory
from cluster.errors import BackendUnreachable, Fenced, FleetuneError, LaunchRefused
from orchestrator.controller.autoscaler_demand import Demand, demand
from orchestrator.controller.fair_share import Shares
from orchestrator.controller.job_cache import JobCache
from orchestrator.controller.leadership import Leading
from orchestrator.controller.ledger import Cluster, Nominations, Orders, kept, orders, snapshot
from orchestrator.controller.node_health import NodeWatch
from orchestrator.controller.set_aside import SetAside, held_aside, without_faulty
from orchestrator.controller.silence import Hearing
from orchestrator.controller.stopping import Stops
from orchestrator.controller.strays import clear_away
from orchestrator.queue.clock import TOLERANCE_S, Clock
from orchestrator.queue.errors import NotLeader, StoreBroken
from orchestrator.queue.months import MonthUse
from orchestrator.queue.node_rules import rules_by_node, to_be_left
from orchestrator.queue.records import Job, NodeRule, Transition, UnreadableRow
from orchestrator.queue.retry import may_start_at_s
from orchestrator.queue.states import HOLDS_A_LEASE, DesiredState, State
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant
from orchestrator.queue.timing import USUAL, Timing
from orchestrator.queue.transitions import Seen, next_transition
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT, Policy

LaunchOf = Callable[[Job, str], Launch]  # from a job and its spec
_LABELS_KEPT = 1000  # number of labels of former nodes to keep, for messages to jobs
_ROUNDS = 4  # most transitions of one job in one pass: running, stopping, queued


class Controller:
    """The leader's part of a server. `step` is one pass. Not thread-safe."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        clock: Clock,
        leading: Leading,
        launch_of: LaunchOf,
        policy: Policy = DEFAULT,
        timing: Timing = USUAL,
        takes_over: bool = False,
    ) -> None:
        """
        Args:
            takes_over: use machines that a newer state of the store has used. Only if that state is gone for good, for
                example after the store was restored from a backup.
        """
        self._store, self._backend, self._clock, self._leading = store, backend, clock, leading
        self._launch_of, self._policy, self._timing = launch_of, policy, timing
        self._takes_over = takes_over
        self._term: _Term | None = None
        self._newest_s = clock.now_s()

    def demand(self) -> Demand:
        """Return the demand for an autoscaler, of the queue as the last pass left it."""
        return self._term.demand() if self._term is not None else Demand()

    def set_aside(self) -> tuple[UnreadableRow, ...]:
        """Return the jobs that the last pass could not plan."""
        term = self._term  # a copy, since other threads may call this
        return term.set_aside() if term is not None else ()

    def step(self) -> bool:
        """Do one pass: look, decide, write, act. Returns whether this server leads.

        Raises:
            StoreBroken, BackendUnreachable: nothing is lost; the next pass goes on.
            Fenced: this server leads by the store, but the machines know a newer leader.
        """
        if not self._leading.renew():
            self._term = None
            return False
        now_s = self._clock.now_s()
        if now_s < self._newest_s - TOLERANCE_S:  # the clock was ahead and was corrected: known times are wrong
            self._term = None
        self._newest_s = now_s
        try:
            if self._term is None or self._term.epoch != self._leading.epoch:
                self._term = _Term(self, self._leading.epoch)
            self._term.step()
        except NotLeader:
            self._term = None
            return False
        except Fenced:
            return self._refused()
        return True

    def _refused(self) -> bool:
        """Handle refusal by the machines: give way if another server leads, else raise Fenced."""
        self._term = None
        if self._takes_over:
            self._leading.resign()  # the next epoch is larger
            return False
        if not self._leading.still_leads():
            return False
        raise Fenced(
            "the machines know of a newer leader of this queue than its store does, and start nothing for this server. "
            "Is there a second server with a copy of this store? End it. Was the store brought back from a backup? "
            "Then start this server with --take-over"
        )


class _Term:
    """What this server knows during one leadership. Times are of the steady clock unless noted."""

    def __init__(self, of: Controller, epoch: int) -> None:
        self.epoch = epoch
        self._of, self._store, self._backend, self._timing = of, of._store, of._backend, of._timing
        self._backend.fence(epoch)  # from now on no earlier leader can start anything
        now_s, half_life_s = of._clock.now_s(), of._policy.share_half_life_s
        self._store.pull_back(epoch, now_s)
        self._cache = JobCache(self._store)
        self._cache.read()
        self._shares = Shares(self._store.decayed_use(now_s, half_life_s), now_s, half_life_s)
        self._month: MonthUse | None = None  # None: no tenant has a limit of GPU-hours
        self._nominations: Nominations = {}
        self._cluster: Cluster | None = None  # as of the last pass
        self._last_demand: tuple[Any, Demand] = (None, Demand())
        self._planned: Any = None  # the input of the last plan
        self._plan_again_s = 0.0
        self._refused: dict[str, str] = {}
        self._doubtful: dict[str, float] = {}  # submission -> time until which it may still appear
        self._stops = Stops(self._backend, self._timing.grace_s)
        self._labels: dict[str, str] = {}
        self._hearing = Hearing(self._store) if self._timing.silent_s is not None else None
        self._watch = NodeWatch(self._store, self._go_on)
        self._aside = SetAside(self._store, self._go_on)
        self._seen_nodes = {node: self._steady_s for job in self._cache.jobs for node, _ in job.placement}
        # Jobs that the previous leader was stopping. Preempt nothing until they are gone: it is unknown for whom they
        # stop.
        self._inherited = {job.submission for job in self._cache.jobs if job.state is State.STOPPING}

    @property
    def _steady_s(self) -> float:
        return self._of._clock.steady_s()

    def step(self) -> None:
        inventory, given = self._backend.inventory(), self._store.node_rules()
        rules = rules_by_node(given, inventory.nodes)
        seen = self._look(inventory, rules)
        self._go_on()
        inventory = self._without_unreadable(inventory, seen.now_s)
        self._watch.look(inventory, given, self._seen_nodes, seen.now_s)
        self._settle(seen)
        self._watch.suspect(inventory, given, seen.now_s)
        try:
            self._admit(inventory, rules, seen.now_s)
        except (NotLeader, Fenced, StoreBroken):
            raise
        except Exception:  # an internal error must not keep jobs from being stopped, although nothing starts
            self._act(seen)
            raise
        self._act(seen)

    def set_aside(self) -> tuple[UnreadableRow, ...]:
        return self._aside.rows

    def _without_unreadable(self, inventory: Inventory, now_s: float) -> Inventory:
        """Count slots of jobs that cannot be read as held, and report these jobs."""
        rows = self._store.unreadable()
        if not rows:
            return inventory
        self._aside.tell(rows, now_s)
        return held_aside(inventory, self._store.leases(held=True), (job.job_id for job in self._cache.jobs))

    def _go_on(self) -> None:
        """Check the leadership before an action that only the leader may take. Raises NotLeader."""
        self._of._leading.go_on(self.epoch)

    def _look(self, inventory: Inventory, rules: Mapping[str, NodeRule]) -> Seen:
        steady_s, present = self._steady_s, {node.node_id for node in inventory.nodes}
        self._seen_nodes |= dict.fromkeys(present, steady_s)
        self._labels |= inventory.labels
        for node in [node for node, at_s in self._seen_nodes.items() if steady_s - at_s > self._timing.absent_s]:
            del self._seen_nodes[node]
        if len(self._labels) > 2 * len(present) + _LABELS_KEPT:  # nodes come and go, each with a new id
            self._labels = dict(inventory.labels)
        submissions = {one.submission: one for one in self._backend.submissions()}
        self._cache.read()  # after the submissions: a driver sends its last report before it is seen to have ended
        now_s = self._of._clock.now_s()
        draining, overdue = to_be_left(rules, now_s)
        return Seen(
            now_s,
            submissions,
            doubtful=frozenset(name for name, until_s in self._doubtful.items() if steady_s < until_s),
            nodes=frozenset(self._seen_nodes),
            absent=frozenset(self._seen_nodes.keys() - present),
            labels=self._labels,
            draining=draining,
            overdue=overdue,
            failed=self._cache.failed,
            refused=self._refused,
            most_pending_s=self._timing.pending_s,
            **self._silence(submissions, steady_s),
        )

    def _silence(self, submissions: Mapping[str, Submission], steady_s: float) -> dict[str, Any]:
        """Return the part of `Seen` that is about silent drivers."""
        if self._hearing is None or self._timing.silent_s is None:
            return {}
        running = {name for name, one in submissions.items() if one.phase is Phase.RUNNING}
        return {
            "silent_s": self._hearing.look(self._cache.jobs, running, steady_s),
            "most_unregistered_s": self._timing.register_s,
            "most_silent_s": self._timing.silent_s,
        }

    def _settle(self, seen: Seen) -> None:
        """Make all transitions that follow from what was seen."""
        self._aside.look_again(self._cache.jobs)
        for _ in range(_ROUNDS):
            transitions = [
                transition for job in self._cache.jobs if (transition := self._next_transition(job, seen)) is not None
            ]
            if not transitions:
                return
            self._watch.note(self._cache.jobs, transitions, seen)
            self._write(transitions, seen.now_s)

    def _next_transition(self, job: Job, seen: Seen) -> Transition | None:
        if job in self._aside:
            return None
        try:
            return next_transition(job, seen)
        except Exception as error:  # a row that no rule handles
            self._aside.note(job, error, seen.now_s)
            return None

    def _admit(self, inventory: Inventory, rules: Mapping[str, NodeRule], now_s: float) -> None:
        """Make a plan, and write those of its decisions that can be carried out now."""
        jobs = self._cache.jobs
        slow = self._slow(jobs)
        self._inherited &= {job.submission for job in jobs if job.state is State.STOPPING and job.job_id not in slow}
        tenants = tuple(self._store.tenants())
        cluster = Cluster(
            inventory,
            tenants,
            self._shares.advance(jobs, now_s),
            closed=frozenset(rules),
            slow=slow,
            gpu_hours=self._gpu_hours(tenants, jobs, now_s),
        )
        self._nominations = kept(jobs, self._nominations, cluster)
        looked_at = (
            self._cache.newest,
            inventory,
            tuple(rules.items()),
            cluster.tenants,
            cluster.spent,
            slow,
            bool(self._inherited),
        )
        waits = [job for job in jobs if job.state is State.QUEUED and job.wanted is DesiredState.RUN]
        nothing = not waits and not any(job.sizes and job.state is State.RUNNING for job in jobs)
        self._cluster = cluster
        if nothing or (looked_at == self._planned and now_s < self._plan_again_s):
            return
        policy = replace(self._of._policy, preemption=False) if self._inherited else self._of._policy
        found = self._orders(jobs, cluster, policy, now_s)
        self._write(found.transitions, now_s)
        self._nominations = found.nominations
        # If the input does not change, a new plan can differ by the passing of time only. The queue is then planned
        # rarely.
        self._planned = looked_at
        later_s = [at_s for job in waits if (at_s := may_start_at_s(job)) > now_s]
        self._plan_again_s = min([now_s + self._timing.replan_s, *later_s])

    def _gpu_hours(self, tenants: Sequence[Tenant], jobs: Sequence[Job], now_s: float) -> Mapping[str, float]:
        """Return the GPU-hours of this month by tenant; empty: no tenant has a limit on them."""
        if all(tenant.restrictions.max_gpu_hours_per_month is None for tenant in tenants):
            self._month = None
            return {}
        if self._month is None:
            self._month = MonthUse(self._store.month_totals(now_s, now_s, held=False), now_s)
        return self._month.advance(jobs, now_s)

    def _orders(self, jobs: Sequence[Job], cluster: Cluster, policy: Policy, now_s: float) -> Orders:
        """Plan the jobs. Jobs that make planning fail are set aside."""

        def of(some: Sequence[Job]) -> Orders:
            ids = {job.job_id for job in some}
            nominations = {job_id: places for job_id, places in self._nominations.items() if job_id in ids}
            return orders(some, plan(snapshot(some, nominations, cluster, now_s), policy), nominations, cluster)

        planned = [job for job in jobs if self._may_be_planned(job)]
        return without_faulty(planned, of, lambda job, error: self._aside.note(job, error, now_s))

    def _may_be_planned(self, job: Job) -> bool:
        return job.state is not State.QUEUED or (job not in self._aside and self._cache.may_be_planned(job))

    def demand(self) -> Demand:
        if self._cluster is None:
            return Demand()
        of = (
            self._cache.newest,
            self._cluster.inventory,
            self._cluster.closed,
            self._cluster.spent,
            tuple(self._nominations.items()),
        )
        if of != self._last_demand[0]:
            now_s, policy = self._of._clock.now_s(), self._of._policy
            self._last_demand = of, demand(self._cache.jobs, self._nominations, self._cluster, policy, now_s)
        return self._last_demand[1]

    def _slow(self, jobs: Sequence[Job]) -> frozenset[str]:
        steady_s = self._steady_s
        return frozenset(
            job.job_id
            for job in jobs
            if job.state is State.STOPPING
            and steady_s - self._stops.asked_s(job.submission, steady_s) > self._timing.slow_s
        )

    def _write(self, transitions: Sequence[Transition], now_s: float) -> None:
        if transitions:
            self._go_on()
            self._cache.note(self._store.move(self.epoch, transitions, now_s))

    def _act(self, seen: Seen) -> None:
        """Stop and start drivers as the jobs' states demand. A call that fails does not hold up the others.

        Raises:
            BackendUnreachable: some call failed. More generally, the first error is raised after all calls were made.
        """
        jobs = [job for job in self._cache.jobs if job.state in HOLDS_A_LEASE]
        current = {job.submission for job in jobs}
        there = {name: one for name, one in seen.submissions.items() if not one.ended}
        strays = [one for name, one in seen.submissions.items() if name not in current]
        tasks: list[Callable[[], None]] = []
        tasks += [
            partial(self._stops.stop, job.submission, self._steady_s) for job in jobs if self._is_to_stop(job, there)
        ]
        tasks += [partial(self._start, job) for job in jobs if self._is_to_start(job, seen)]
        end = partial(self._stops.end, steady_s=self._steady_s)
        tasks.append(partial(clear_away, self._store, self._backend, strays, end))
        self._forget_all_but(current, seen)
        failed: Exception | None = None
        for task in tasks:
            self._go_on()
            try:
                task()
            except (NotLeader, Fenced, StoreBroken):
                raise
            except Exception as error:  # including internal errors
                failed = failed or error
        if failed is not None:
            raise failed

    def _is_to_stop(self, job: Job, there: Mapping[str, Submission]) -> bool:
        return job.state is State.STOPPING and job.submission in there

    def _is_to_start(self, job: Job, seen: Seen) -> bool:
        known = job.submission in seen.submissions or job.submission in self._refused
        return job.state is State.STARTING and not known

    def _start(self, job: Job) -> None:
        try:
            launch = self._of._launch_of(job, self._store.spec(job.job_id))
        except (StoreBroken, BackendUnreachable):
            raise
        except FleetuneError as error:
            self._refused[job.submission] = str(error)
            return
        try:
            self._backend.start(launch, self.epoch)
        except LaunchRefused as error:
            self._refused[job.submission] = str(error)
        except BackendUnreachable:
            self._doubtful[job.submission] = self._steady_s + self._timing.doubt_s
            raise

    def _forget_all_but(self, current: set[str], seen: Seen) -> None:
        """Forget submissions that are over."""
        self._stops.forget_all_but(current | seen.submissions.keys())
        for known in (self._refused, self._doubtful):
            for name in known.keys() - current:
                del known[name]
