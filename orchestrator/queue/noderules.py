"""Which nodes of now an order is about. Pure functions.

An order names a node as people do where the node has a name of its own: Ray gives a machine a new id each time it comes
back, and an order holds until it is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.queue.records import NodeRule


def rules_by_node(rules: Iterable[NodeRule], labels: Mapping[str, str]) -> dict[str, NodeRule]:
    """The order of each node that has one, by its id.

    Args:
        labels: what people call each node, by id (`Inventory.labels`).
    """
    named = {rule.node_id: rule for rule in rules}
    found = {node: named.get(label) or named.get(node) for node, label in labels.items()}
    return {node: rule for node, rule in found.items() if rule is not None}
