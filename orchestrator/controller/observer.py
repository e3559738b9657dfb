"""Observes the machines, the drivers and the newest states of jobs in each pass, as one `Observation`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

from cluster.backend import Backend, Phase, Submission
from cluster.capacity.inventory import Inventory
from orchestrator.controller.job_cache import JobCache
from orchestrator.queue.clock import Clock, Timing
from orchestrator.queue.node_rules import drained_nodes
from orchestrator.queue.records import Job, NodeRule
from orchestrator.queue.states import State
from orchestrator.queue.store import Store
from orchestrator.queue.transitions import Observation

_LABELS_KEPT: Final = 1000  # number of labels of former nodes to keep, for messages to jobs
_READ_EVERY_S: Final = 30.0
_MOST_STEP_S: Final = 60.0  # longest silence that counts between two passes; a frozen server received nothing


class Observer:
    """Looks at store and machines during one leadership. Times are of the steady clock unless noted."""

    def __init__(self, store: Store, backend: Backend, clock: Clock, timing: Timing, cache: JobCache) -> None:
        self._backend, self._clock, self._timing, self._cache = backend, clock, timing, cache
        self._labels: dict[str, str] = {}
        self._driver_silence = DriverSilence(store) if timing.silent_s is not None else None
        self._pending_s: Mapping[str, float] = {}
        self._looked_s: float | None = None
        # node -> when it was first missed; None: it was there. Nodes with workers count as there at first.
        self._nodes: dict[str, float | None] = dict.fromkeys(node for job in cache.jobs for node, _ in job.placement)

    def look(
        self,
        inventory: Inventory,
        rules: Mapping[str, NodeRule],
        doubtful: frozenset[str],
        refused: Mapping[str, str],
    ) -> Observation:
        """Read the submissions and then the jobs.

        In this order: a driver sends its last report before it is seen to have ended.

        Args:
            doubtful, refused: see `Observation`.

        Raises:
            StoreBroken, BackendUnreachable: a part cannot be read.
        """
        steady_s, present = self._clock.steady_s(), {node.node_id for node in inventory.nodes}
        self._see_nodes(inventory, present, steady_s)
        submissions = {one.submission: one for one in self._backend.submissions()}
        self._cache.read()
        now_s, passed_s = self._clock.now_s(), self._passed_s(steady_s)
        self._pending_s = _pending_s(self._pending_s, self._cache.jobs, submissions, passed_s)
        draining, overdue = drained_nodes(rules, now_s)
        return Observation(
            now_s,
            submissions,
            doubtful=doubtful,
            nodes=frozenset(self._nodes),
            absent=frozenset(self._nodes.keys() - present),
            labels=self._labels,
            draining=draining,
            overdue=overdue,
            failed=self._cache.failed,
            refused=refused,
            silent_s=self._silent_s(submissions, steady_s, passed_s),
            pending_s=self._pending_s,
            timing=self._timing,
        )

    def _see_nodes(self, inventory: Inventory, present: set[str], steady_s: float) -> None:
        self._nodes |= dict.fromkeys(present)
        self._labels |= inventory.labels
        for node in self._nodes.keys() - present:
            missed_s = self._nodes[node]
            if missed_s is None:
                self._nodes[node] = steady_s
            elif steady_s - missed_s > self._timing.absent_s:
                del self._nodes[node]
        if len(self._labels) > 2 * len(present) + _LABELS_KEPT:  # nodes come and go, each with a new id
            self._labels = dict(inventory.labels)

    def _passed_s(self, steady_s: float) -> float:
        """Return the time since the last look that counts."""
        passed_s = min(steady_s - self._looked_s, _MOST_STEP_S) if self._looked_s is not None else 0.0
        self._looked_s = steady_s
        return passed_s

    def _silent_s(
        self, submissions: Mapping[str, Submission], steady_s: float, passed_s: float
    ) -> Mapping[str, float] | None:
        if self._driver_silence is None:
            return None
        running = {name for name, one in submissions.items() if one.phase is Phase.RUNNING}
        return self._driver_silence.look(self._cache.jobs, running, steady_s, passed_s)


class DriverSilence:
    """The silence of drivers during one leadership.

    Time counts only while this server leads, its store answers and its passes go on, so an outage of the server does
    not count. Times are of the steady clock. The store tells which drivers were heard, because drivers may report to
    any server of the queue.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._silent_s: dict[str, float] = {}  # by submission
        self._heard: Mapping[str, float | None] = {}
        self._read_s = float("-inf")

    def look(
        self, jobs: Iterable[Job], running: Container[str], steady_s: float, passed_s: float
    ) -> Mapping[str, float]:
        """Return seconds of silence of each running driver, by submission.

        Args:
            running: submissions whose program runs, as the machines say.
            passed_s: time since the last call that counts.
        """
        current = [
            job.submission for job in jobs if job.state in (State.STARTING, State.RUNNING) and job.submission in running
        ]
        self._silent_s = {name: self._silent_s[name] + passed_s if name in self._silent_s else 0.0 for name in current}
        if steady_s - self._read_s >= _READ_EVERY_S:
            self._read_s, before, self._heard = steady_s, self._heard, self._store.heard()
            for name in current:
                if self._heard.get(name) != before.get(name):
                    self._silent_s[name] = 0.0
        return self._silent_s


def _pending_s(
    before: Mapping[str, float], jobs: Iterable[Job], submissions: Mapping[str, Submission], passed_s: float
) -> Mapping[str, float]:
    """Return how long this leadership has seen each STARTING attempt without a running driver, by submission."""
    pending = [
        job.submission
        for job in jobs
        if job.state is State.STARTING
        and ((there := submissions.get(job.submission)) is None or there.phase is not Phase.RUNNING)
    ]
    return {name: before[name] + passed_s if name in before else 0.0 for name in pending}
