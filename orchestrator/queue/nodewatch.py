"""What the leader does about nodes by itself: it leaves alone what fails again and again, and forgets what is over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from cluster.inventory import Inventory
from orchestrator.queue.noderules import is_over
from orchestrator.queue.records import Job, Move, NodeOrder, NodeRule, QueueEvent
from orchestrator.queue.rules import Seen
from orchestrator.queue.store import Store
from orchestrator.queue.suspicion import BY, FACT, Incident, dumped, incident_of, loaded, suspects


class NodeWatch:
    """Of one leadership. Its memory is the store's, for those who lead later."""

    def __init__(self, store: Store, go_on: Callable[[], None]) -> None:
        """`go_on`: before each write; raises NotLeader."""
        self._store, self._go_on = store, go_on
        self._incidents = loaded(store.facts().get(FACT, ""))

    def note(self, jobs: Iterable[Job], moves: Sequence[Move], seen: Seen) -> None:
        """What moves that are about to be made say of machines."""
        known = {job.job_id: job for job in jobs}
        found = [one for move in moves if (one := _incident(known[move.job_id], move, seen)) is not None]
        if found:
            self._keep([*self._incidents, *found], seen.now_s)

    def forget_what_is_over(self, rules: Iterable[NodeRule], lives: Collection[str]) -> None:
        for rule in rules:
            if is_over(rule, lives):
                self._go_on()
                self._store.put_node_rule(replace(rule, order=NodeOrder.USE))

    def suspect(self, inventory: Inventory, rules: Mapping[str, NodeRule], now_s: float) -> None:
        """Have nodes that fail again and again take nothing new; never the last one. What was known is forgotten then:
        once somebody lets such a node work again, it begins anew."""
        labels, closed = inventory.labels, {inventory.labels[node] for node in rules}
        for node, evidence in suspects(self._incidents, len(inventory.nodes), now_s).items():
            others = [one for one in inventory.nodes if one.usable and labels[one.node_id] not in closed | {node}]
            if node in closed or not others:
                continue
            closed.add(node)
            self._go_on()
            self._store.put_node_rule(NodeRule(node, NodeOrder.CORDON, BY, evidence, now_s))
            said = f"{node} takes nothing new, since it {evidence}"
            self._store.add_events([QueueEvent(now_s, NodeOrder.CORDON.value, said, data={"node": node, "by": BY})])
            self._keep([one for one in self._incidents if node not in one.nodes], now_s)

    def _keep(self, incidents: Sequence[Incident], now_s: float) -> None:
        self._go_on()
        text = dumped(incidents, now_s)
        self._store.put_facts({FACT: text})
        self._incidents = loaded(text)


def _incident(job: Job, move: Move, seen: Seen) -> Incident | None:
    held = [node for node, _ in job.placement]
    gone = [node for node in held if node in seen.absent or (seen.nodes is not None and node not in seen.nodes)]
    driver = seen.submissions.get(job.submission)
    code = None if driver is None else driver.exit_code
    return incident_of(job, move, seen.called(gone), seen.called(held), code, seen.now_s)
