"""The machines, what has been ordered of them, and who is there."""

from __future__ import annotations

from orchestrator.api import NodeOrderSent, Nodes, NodeView
from orchestrator.service.caller import ANYBODY, Caller
from orchestrator.service.surroundings import Surroundings


def nodes(surroundings: Surroundings, caller: Caller = ANYBODY) -> Nodes:
    """Jobs that the caller may not see are `a job of TENANT`. Raises BackendUnreachable, StoreBroken."""
    raise NotImplementedError


def order(surroundings: Surroundings, node_id: str, sent: NodeOrderSent, caller: Caller) -> NodeView:
    """Raises UnknownNode, Forbidden (of who is no admin), BackendUnreachable, StoreBroken."""
    raise NotImplementedError
