"""The controller: look, settle, plan, write, and only then act. Decisions are made by pure functions.

What to do to the machines follows from the states of the jobs alone: a STARTING job without a driver is started, a
STOPPING job with a driver is stopped. If a server is killed anywhere in a pass, the next pass does what is left, on
this server or another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.backend import Backend
from cluster.capacity.inventory import Inventory
from cluster.errors import Fenced
from orchestrator.controller.autoscaler_demand import Demand
from orchestrator.controller.drivers import Drivers, LaunchOf
from orchestrator.controller.job_cache import JobCache
from orchestrator.controller.leadership import LeaderElection
from orchestrator.controller.machines import MachinesGuard
from orchestrator.controller.node_health import NodeWatch
from orchestrator.controller.observer import Observer
from orchestrator.controller.planner import Planner
from orchestrator.controller.set_aside import SetAside, held_aside
from orchestrator.queue.clock import TOLERANCE_S, USUAL, Clock, Timing
from orchestrator.queue.errors import NotLeader, OtherMachines, StoreBroken
from orchestrator.queue.node_rules import rules_by_node
from orchestrator.queue.records import Job, NodeRule, Transition, UnreadableRow
from orchestrator.queue.store import Store
from orchestrator.queue.transitions import Observation, next_transition
from orchestrator.scheduling.policy import DEFAULT, Policy

# Most rounds of settling in a pass. A job that started and ended since the last pass needs three (running, stopping,
# queued), and the fourth finds nothing.
_ROUNDS = 4


class Controller:
    """The leader's part of a server. `step` is one pass. Not thread-safe."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        clock: Clock,
        election: LeaderElection,
        launch_of: LaunchOf,
        policy: Policy = DEFAULT,
        timing: Timing = USUAL,
        takes_over: bool = False,
        guard: MachinesGuard | None = None,
    ) -> None:
        """
        Args:
            takes_over: raise this server's epoch until the machines accept it, although they have obeyed a newer leader
                than this store knows. Only if that newer store is lost, for example after a backup was restored.
            guard: keeps a server from leading whose machines are not those of the running jobs; None: all are the same.
        """
        self._store, self._backend, self._clock, self._election = store, backend, clock, election
        self._launch_of, self._policy, self._timing = launch_of, policy, timing
        self._takes_over, self._guard = takes_over, guard or MachinesGuard(store)
        self._term: _Term | None = None
        self._newest_s = clock.now_s()

    def demand(self) -> Demand:
        """Return the demand for an autoscaler, of the queue as the last pass left it."""
        return self._term.demand() if self._term is not None else Demand()

    def set_aside(self) -> tuple[UnreadableRow, ...]:
        """Return the jobs that the last pass could not plan."""
        term = self._term  # a copy, since other threads may call this
        return term.aside.rows if term is not None else ()

    def step(self) -> bool:
        """Do one pass: look, settle, plan, write, act. Returns whether this server leads.

        Raises:
            StoreBroken, BackendUnreachable: nothing is lost; the next pass goes on.
            Fenced: this server leads by the store, but the machines know a newer leader.
            OtherMachines: jobs hold leases on other machines, so that this server does not lead.
        """
        if self._term is None:
            self._guard.check()  # before this server takes the leadership from one with the right machines
        if not self._election.renew():
            self._term = None
            return False
        now_s = self._clock.now_s()
        if now_s < self._newest_s - TOLERANCE_S:  # the clock was ahead and was corrected: known times are wrong
            self._term = None
        self._newest_s = now_s
        try:
            if self._term is None or self._term.epoch != self._election.epoch:
                self._guard.record(self._election.epoch)
                self._term = _Term(self, self._election.epoch)
            self._term.step()
        except NotLeader:
            self._term = None
            return False
        except Fenced:
            return self._refused()
        except OtherMachines:  # a job has started since the check above
            self._term = None
            self._election.resign()
            raise
        return True

    def _refused(self) -> bool:
        """Handle refusal by the machines: give way if another server leads, else raise Fenced."""
        self._term = None
        if self._takes_over:
            self._election.resign()  # the next epoch is larger
            return False
        if not self._election.still_leads():
            return False
        raise Fenced(
            "the machines know of a newer leader of this queue than its store does, and start nothing for this server. "
            "Is there a second server with a copy of this store? End it. Was the store brought back from a backup? "
            "Then start this server with --take-over"
        )


class _Term:
    """One leadership: what this server knows, and the steps of a pass."""

    def __init__(self, of: Controller, epoch: int) -> None:
        self.epoch = epoch
        self._election, self._store, self._backend = of._election, of._store, of._backend
        self._backend.fence(epoch)  # from now on no earlier leader can start anything
        self._store.pull_back(epoch, of._clock.now_s())
        store, backend, clock, timing = of._store, of._backend, of._clock, of._timing
        self._cache = JobCache(store)
        self._cache.read()
        self.aside = SetAside(store, self._check_leadership)
        self._watch = NodeWatch(store, self._check_leadership)
        self._observer = Observer(store, backend, clock, timing, self._cache)
        self._planner = Planner(store, clock, of._policy, timing, self._cache, self.aside)
        self._drivers = Drivers(store, backend, clock, timing, of._launch_of, epoch, self._check_leadership)
        self.demand = self._planner.demand

    def step(self) -> None:
        """Do one pass.

        1. Look at the machines, their drivers and the jobs.
        2. Settle: make the transitions that follow from what was seen.
        3. Plan the waiting jobs, and write the transitions of the plan.
        4. Act: stop and start drivers as the states of the jobs demand.
        """
        inventory, given = self._backend.inventory(), self._store.node_rules()
        rules = rules_by_node(given, inventory.nodes)
        seen = self._observer.look(inventory, rules, self._drivers.doubtful, self._drivers.refused)
        self._check_leadership()
        inventory = self._without_unreadable(inventory, seen.now_s)
        self._watch.look(inventory, given, seen.nodes or (), seen.now_s)
        self._settle(seen)
        self._watch.suspect(inventory, given, seen.now_s)
        try:
            self._plan(inventory, rules, seen.now_s)
        except (NotLeader, Fenced, StoreBroken):
            raise
        except Exception:
            # Drivers must still be stopped after an error in planning. New leases wait for the next pass.
            self._drivers.act(self._cache.jobs, seen)
            raise
        self._drivers.act(self._cache.jobs, seen)

    def _check_leadership(self) -> None:
        """Check the leadership before an action that only the leader may take. Raises NotLeader."""
        self._election.go_on(self.epoch)

    def _without_unreadable(self, inventory: Inventory, now_s: float) -> Inventory:
        """Count slots of jobs that cannot be read as held, and report these jobs."""
        rows = self._store.unreadable()
        if not rows:
            return inventory
        self.aside.tell(rows, now_s)
        return held_aside(inventory, self._store.leases(held=True), (job.job_id for job in self._cache.jobs))

    def _settle(self, seen: Observation) -> None:
        """Make all transitions that follow from what was seen."""
        self.aside.look_again(self._cache.jobs)
        for _ in range(_ROUNDS):
            found = (self._next_transition(job, seen) for job in self._cache.jobs)
            transitions = [one for one in found if one is not None]
            if not transitions:
                return
            self._watch.note(self._cache.jobs, transitions, seen)
            self._write(transitions, seen.now_s)

    def _next_transition(self, job: Job, seen: Observation) -> Transition | None:
        if job in self.aside:
            return None
        try:
            return next_transition(job, seen)
        except Exception as error:  # a row that no rule handles
            self.aside.note(job, error, seen.now_s)
            return None

    def _plan(self, inventory: Inventory, rules: Mapping[str, NodeRule], now_s: float) -> None:
        """Make a plan, and write those of its decisions that can be carried out now."""
        planned = self._planner.plan(inventory, rules, self._drivers.slow(self._cache.jobs), now_s)
        if planned is not None:
            self._write(planned.result.transitions, now_s)
            self._planner.accept(planned)

    def _write(self, transitions: Sequence[Transition], now_s: float) -> None:
        if transitions:
            self._check_leadership()
            self._cache.note(self._store.apply_transitions(self.epoch, transitions, now_s))
