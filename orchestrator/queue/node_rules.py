"""Which nodes of now an order is about. Pure functions.

An order names a node as people do where the node has a name of its own: Ray gives a machine a new id each time it comes
back, and an order holds until it is taken back.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from cluster.capacity.inventory import Node
from orchestrator.queue.records import NodeOrder, NodeRule

_RAY, _TAKEN = "ray", "Ray is about to take it away"


def rules_by_node(rules: Iterable[NodeRule], nodes: Iterable[Node]) -> dict[str, NodeRule]:
    """The order of each node that has one, by its id; where there are two, the one that empties the node."""
    named = {rule.node_id: rule for rule in rules}
    found = {}
    for node in nodes:
        given = [named[name] for name in (node.name, node.node_id) if name in named]
        if given:
            found[node.node_id] = max(given, key=lambda rule: rule.order is NodeOrder.DRAIN)
    return found


def taken_by_ray(node_id: str, now_s: float) -> NodeRule:
    """Of a node that Ray is draining, by its id: a machine that comes back is another node."""
    return NodeRule(node_id, NodeOrder.DRAIN, _RAY, _TAKEN, now_s)


def is_over(rule: NodeRule, lives: Container[str]) -> bool:
    """Whether Ray has done what such a rule says. `lives`: ids of the nodes that are there, or may be."""
    return (rule.by, rule.reason) == (_RAY, _TAKEN) and rule.node_id not in lives


def to_be_left(rules: Mapping[str, NodeRule], now_s: float) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of the nodes that are drained, and of those whose deadline is over."""
    drains = {node: rule for node, rule in rules.items() if rule.order is NodeOrder.DRAIN}
    overdue = {node for node, rule in drains.items() if rule.deadline_s is not None and rule.deadline_s <= now_s}
    return frozenset(drains), frozenset(overdue)
