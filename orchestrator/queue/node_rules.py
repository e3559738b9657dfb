"""Node rules: which nodes an order (cordon, drain) applies to. Pure functions.

An order uses the name of a node if it has one: Ray gives a machine a new id each time it comes back, and the order must
hold until it is withdrawn.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from cluster.capacity.inventory import Node
from orchestrator.queue.records import NodeOrder, NodeRule

_RAY = "ray"  # who gives the rules of `taken_by_ray`


def rules_by_node(rules: Iterable[NodeRule], nodes: Iterable[Node]) -> dict[str, NodeRule]:
    """Return the rule of each node that has one, by node id. If there are two, a drain wins over a cordon."""
    named = {rule.node_id: rule for rule in rules}
    found = {}
    for node in nodes:
        given = [named[name] for name in (node.name, node.node_id) if name in named]
        if given:
            found[node.node_id] = max(given, key=lambda rule: rule.order is NodeOrder.DRAIN)
    return found


def taken_by_ray(node_id: str, now_s: float) -> NodeRule:
    """Return the rule of a node that Ray drains. It uses the id, since a machine that comes back is a new node."""
    return NodeRule(node_id, NodeOrder.DRAIN, _RAY, "Ray is about to take it away", now_s)


def is_over(rule: NodeRule, lives: Container[str]) -> bool:
    """Whether a rule of `taken_by_ray` is done. `lives`: ids of nodes that exist, or may reappear."""
    return rule.by == _RAY and rule.node_id not in lives


def drained_nodes(rules: Mapping[str, NodeRule], now_s: float) -> tuple[frozenset[str], frozenset[str]]:
    """Return the ids of drained nodes, and of those whose deadline has passed."""
    drains = {node: rule for node, rule in rules.items() if rule.order is NodeOrder.DRAIN}
    overdue = {node for node, rule in drains.items() if rule.deadline_s is not None and rule.deadline_s <= now_s}
    return frozenset(drains), frozenset(overdue)
