"""Which nodes of now an order is about. Pure functions.

An order names a node as people do where the node has a name of its own: Ray gives a machine a new id each time it comes
back, and an order holds until it is taken back.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from orchestrator.queue.records import NodeOrder, NodeRule

_RAY, _TAKEN = "ray", "Ray is about to take it away"


def taken_by_ray(node_id: str, now_s: float) -> NodeRule:
    """Of a node that Ray is draining, by its id: a machine that comes back is another node."""
    return NodeRule(node_id, NodeOrder.DRAIN, _RAY, _TAKEN, now_s)


def is_over(rule: NodeRule, lives: Container[str]) -> bool:
    """Whether Ray has done what such a rule says. `lives`: ids of the nodes that are there, or may be."""
    return (rule.by, rule.reason) == (_RAY, _TAKEN) and rule.node_id not in lives


def rules_by_node(rules: Iterable[NodeRule], labels: Mapping[str, str]) -> dict[str, NodeRule]:
    """The order of each node that has one, by its id.

    Args:
        labels: what people call each node, by id (`Inventory.labels`).
    """
    named = {rule.node_id: rule for rule in rules}
    found = {node: named.get(label) or named.get(node) for node, label in labels.items()}
    return {node: rule for node, rule in found.items() if rule is not None}
