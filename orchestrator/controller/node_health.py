"""The leader's own actions on nodes: it cordons nodes that fail repeatedly, and removes rules that are over."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from cluster.capacity.inventory import Inventory
from orchestrator.controller.node_failures import (
    AT_ONCE_S,
    BY,
    FACT,
    REPORTED,
    Incident,
    added,
    dumped,
    incident_of,
    is_an_outage,
    loaded,
    suspects,
)
from orchestrator.queue.node_rules import is_over, rules_by_node
from orchestrator.queue.records import Job, NodeOrder, NodeRule, QueueEvent, Transition
from orchestrator.queue.store import Store
from orchestrator.queue.transitions import Observation

_READ_EVERY_S = 30.0


class NodeWatch:
    """Watches nodes during one leadership. What it learns is kept in the store for later leaders."""

    def __init__(self, store: Store, go_on: Callable[[], None]) -> None:
        """`go_on`: called before each write; raises NotLeader."""
        self._store, self._go_on = store, go_on
        self._incidents = loaded(store.facts().get(FACT, ""))
        self._reported: list[Incident] = []
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

        The incidents of such a node are then forgotten, so that it starts anew once somebody lets it work again.
        """
        labels, named = inventory.labels, {rule.node_id for rule in rules}
        closed = {labels[node] for node in rules_by_node(rules, inventory.nodes)}
        self._read_reported(now_s)
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
            self._keep([one for one in self._incidents if node not in one.nodes])
            known = loaded(self._store.facts().get(REPORTED, ""))
            self._reported = [one for one in known if node not in one.nodes]
            self._store.put_facts({REPORTED: dumped(self._reported)})

    def _read_reported(self, now_s: float) -> None:
        """Read what drivers have reported, to any server of the queue."""
        if now_s - self._read_at_s >= _READ_EVERY_S:
            self._read_at_s = now_s
            self._reported = loaded(self._store.facts().get(REPORTED, ""))

    def _keep(self, incidents: list[Incident]) -> None:
        self._go_on()
        self._store.put_facts({FACT: dumped(incidents)})
        self._incidents = incidents
