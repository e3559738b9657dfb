"""The leader's own actions on nodes: it cordons nodes that fail repeatedly, and removes rules that are over.

A node has an incident if it disappears under a job, or if drivers of several jobs report its hardware as broken. A
report that does not name the node does not count: the cause may be storage that does not answer. Nodes are identified
by name if they have one, because Ray gives a machine a new id each time it comes back.

A driver repeats its report in every heartbeat. Servers therefore keep each report for a day, also once it no longer
counts, and the leader keeps apart since when reports about a node count.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from cluster.capacity.inventory import Inventory
from orchestrator.queue.names import job_of
from orchestrator.queue.node_rules import is_over, rules_by_node
from orchestrator.queue.records import Job, NodeOrder, NodeRule, QueueEvent, Transition
from orchestrator.queue.states import DRIVER_ENDED, Reason, State
from orchestrator.queue.store import Store
from orchestrator.queue.transitions import Observation

BY: Final = "fleetune"  # who has ordered the cordon, for node rules
WITHIN_S: Final = 24 * 3600.0
ENOUGH: Final = 3
AT_ONCE_S: Final = 120.0  # seconds; a node that disappears under several jobs within this time has one incident
FACT: Final = "incidents"  # key in the store: nodes that disappeared
REPORTED: Final = "reported-incidents"  # key in the store: hardware failures that drivers reported
CLEARED: Final = "cleared-nodes"  # key in the store: name of a node -> the time up to which no report about it counts
FAULTY: Final = "faulty"  # kind of the events about reports, which belong to a job: other tenants may not see its id
_TOLD: Final = 5
_MOST_KEPT: Final = 1000
_READ_EVERY_S = 30.0


@dataclass(frozen=True)
class Incident:
    """An attempt whose nodes failed. `nodes`: their names."""

    at_s: float
    nodes: tuple[str, ...]
    attempt: str


def incident_of(job: Job, transition: Transition, gone: Sequence[str], now_s: float) -> Incident | None:
    """Return the incident that a transition implies; None: none. `gone`: names of the job's nodes that disappeared."""
    stops = transition.to is State.STOPPING and transition.reason in (Reason.NODE_LOST, *DRIVER_ENDED)
    return Incident(now_s, tuple(gone), job.submission) if stops and gone else None


def is_an_outage(gone: int, nodes: int) -> bool:
    """Whether more than half of the nodes disappeared at about the same time. Then none of them is blamed.

    Args:
        nodes: number of all nodes, including those that disappeared.
    """
    return gone * 2 > nodes


def added(incidents: Sequence[Incident], found: Iterable[Incident], now_s: float) -> list[Incident]:
    """Add incidents, each node of an attempt once, and drop those that are too old."""
    kept = _recent(incidents, now_s)
    for one in found:
        kept += [new] if (new := unknown_part(kept, one, now_s)) is not None else []
    return kept[-_MOST_KEPT:]


def unknown_part(incidents: Iterable[Incident], one: Incident, now_s: float) -> Incident | None:
    """Return an incident with those of its nodes that are not known of its attempt within a day; None: all are."""
    known = {node for other in _recent(incidents, now_s) if other.attempt == one.attempt for node in other.nodes}
    nodes = tuple(node for node in one.nodes if node not in known)
    return replace(one, nodes=nodes) if nodes else None


def _recent(incidents: Iterable[Incident], now_s: float) -> list[Incident]:
    return [one for one in incidents if now_s - one.at_s <= WITHIN_S]


def without(incidents: Iterable[Incident], nodes: Collection[str]) -> list[Incident]:
    """Return the incidents as far as they count against other nodes."""
    left = (replace(one, nodes=tuple(node for node in one.nodes if node not in nodes)) for one in incidents)
    return [one for one in left if one.nodes]


def counting(reported: Iterable[Incident], cleared: Mapping[str, float]) -> list[Incident]:
    """Return the reports as far as they count. `cleared`: node -> the time up to which no report about it counts."""
    left = (
        replace(one, nodes=tuple(node for node in one.nodes if one.at_s > cleared.get(node, -math.inf)))
        for one in reported
    )
    return [one for one in left if one.nodes]


def suspects(incidents: Iterable[Incident], now_s: float, reported: Iterable[Incident] = ()) -> Mapping[str, str]:
    """Return nodes that have failed often enough, each with the evidence in one line.

    Args:
        reported: incidents that drivers reported. Each job counts once against a node, since its own program may be the
            cause.
    """
    against: dict[str, list[float]] = defaultdict(list)
    named = list(_one_of_each_job(reported))
    for one in sorted([*incidents, *named], key=lambda one: one.at_s):
        for node in one.nodes if now_s - one.at_s <= WITHIN_S else ():
            if not against[node] or one.at_s - against[node][-1] > AT_ONCE_S:
                against[node].append(one.at_s)
    broken = {node for one in named for node in one.nodes}
    return {node: _evidence(times, node in broken) for node, times in against.items() if len(times) >= ENOUGH}


def _one_of_each_job(reported: Iterable[Incident]) -> Iterator[Incident]:
    seen: set[tuple[str, str]] = set()
    for one in reported:
        job = job_of(one.attempt)
        nodes = tuple(node for node in one.nodes if (job, node) not in seen)
        seen |= {(job, node) for node in nodes}
        if nodes:
            yield replace(one, nodes=nodes)


def dumped(incidents: Sequence[Incident]) -> str:
    """Encode incidents for the store."""
    return json.dumps([asdict(one) for one in incidents], separators=(",", ":"))


def loaded(text: str) -> list[Incident]:
    """Decode incidents. Content in a format of another release is ignored."""
    found = []
    with contextlib.suppress(ValueError, TypeError, KeyError):
        for one in json.loads(text or "[]"):
            found.append(Incident(float(one["at_s"]), tuple(map(str, one["nodes"])), str(one["attempt"])))
    return found


def _loaded_times(text: str) -> dict[str, float]:
    """Decode times by node. Content in a format of another release is ignored."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return {str(node): float(at_s) for node, at_s in json.loads(text or "{}").items()}
    return {}


def _evidence(times: Sequence[float], broken: bool) -> str:
    """Describe incidents without the jobs, which only their tenants may see."""
    told = [f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%H:%MZ}" for at_s in times[-_TOLD:]]
    what = "was gone or reported as faulty" if broken else "was gone"
    return f"{what} under jobs {len(times)} times within a day: at {', '.join(told)}"


class NodeWatch:
    """Watches nodes during one leadership. What it learns is kept in the store for later leaders."""

    def __init__(self, store: Store, go_on: Callable[[], None]) -> None:
        """`go_on`: called before each write; raises NotLeader."""
        self._store, self._go_on = store, go_on
        facts = store.facts()
        self._incidents = loaded(facts.get(FACT, ""))
        self._cleared = _loaded_times(facts.get(CLEARED, ""))
        self._reported: list[Incident] = []  # as far as they count
        self._ordered: frozenset[str] = frozenset()  # names of nodes under an order, in the last pass
        self._read_at_s = -math.inf
        self._present: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {}  # id -> time at which it disappeared

    def look(self, inventory: Inventory, rules: Iterable[NodeRule], lives: Collection[str], now_s: float) -> None:
        """Compare the nodes with the last pass. `lives`: ids of nodes that exist, or may reappear."""
        present = frozenset(node.node_id for node in inventory.nodes)
        self._gone |= dict.fromkeys(self._present - present, now_s)
        self._gone = {node: at_s for node, at_s in self._gone.items() if now_s - at_s <= AT_ONCE_S}
        self._present = present
        for rule in rules:
            if is_over(rule, lives):
                self._go_on()
                self._store.put_node_rule(replace(rule, order=NodeOrder.USE))

    def note(self, jobs: Iterable[Job], transitions: Sequence[Transition], seen: Observation) -> None:
        """Record the incidents that these transitions imply, before they are made."""
        gone = {node for node in self._gone if node not in self._present}
        if not gone or is_an_outage(len(gone), len(self._present | gone)):
            return
        known = {job.job_id: job for job in jobs}
        found = []
        for transition in transitions:
            job = known[transition.job_id]
            lost = [node for node, _ in job.placement if node in gone]
            one = incident_of(job, transition, seen.called(lost), seen.now_s)
            found += [one] if one is not None else []
        if found:
            self._keep(added(self._incidents, found, seen.now_s))

    def suspect(self, inventory: Inventory, rules: Sequence[NodeRule], now_s: float) -> None:
        """Cordon nodes that fail repeatedly, but never the last one.

        The incidents of a node under an order are forgotten, so that it starts anew once somebody lets it work again.
        """
        labels, named = inventory.labels, frozenset(rule.node_id for rule in rules)
        closed = {labels[node] for node in rules_by_node(rules, inventory.nodes)}
        if named != self._ordered:
            self._read_at_s = -math.inf  # reports from before the end of an order must not count after it
        self._read_reported(now_s)
        self._forget(named | self._ordered, now_s)
        self._ordered = named
        for node, evidence in suspects(self._incidents, now_s, self._reported).items():
            others = [one for one in inventory.nodes if one.usable and labels[one.node_id] not in closed | {node}]
            if node in named or node in closed or not others:
                continue
            closed.add(node)
            self._go_on()
            self._store.put_node_rule(NodeRule(node, NodeOrder.CORDON, BY, evidence, now_s))
            under = [one.attempt for one in (*self._incidents, *self._reported) if node in one.nodes]
            data = {"node": node, "by": BY, "attempts": under}
            said = f"{node} takes nothing new: it {evidence}"
            self._store.add_events([QueueEvent(now_s, NodeOrder.CORDON.value, said, data=data)])
            self._forget({node}, now_s)

    def _forget(self, nodes: Collection[str], now_s: float) -> None:
        """Forget the incidents of these nodes, which are given by name."""
        if any(node in nodes for one in self._incidents for node in one.nodes):
            self._keep(without(self._incidents, nodes))
        if any(node in nodes for one in self._reported for node in one.nodes):
            known = {node: at_s for node, at_s in self._cleared.items() if now_s - at_s <= WITHIN_S}
            self._go_on()
            self._cleared = known | dict.fromkeys(nodes, now_s)
            self._store.put_facts({CLEARED: json.dumps(self._cleared, separators=(",", ":"))})
            self._reported = counting(self._reported, self._cleared)

    def _read_reported(self, now_s: float) -> None:
        """Read what drivers have reported, to any server of the queue."""
        if now_s - self._read_at_s >= _READ_EVERY_S:
            self._read_at_s = now_s
            self._reported = counting(loaded(self._store.facts().get(REPORTED, "")), self._cleared)

    def _keep(self, incidents: list[Incident]) -> None:
        self._go_on()
        self._store.put_facts({FACT: dumped(incidents)})
        self._incidents = incidents
