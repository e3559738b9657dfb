"""Nodes: their resources, orders (cordon, drain), and jobs; and the release of a job whose node is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.capacity.inventory import Node
from cluster.text import did_you_mean, format_time
from orchestrator.api import NodeOrderSent, Nodes, NodeView
from orchestrator.controller.autoscaler_demand import format_growth
from orchestrator.queue.errors import NotReleasable, QueueError, UnknownNode
from orchestrator.queue.node_rules import rules_by_node
from orchestrator.queue.records import Job, Lease, NodeOrder, NodeRule, QueueEvent
from orchestrator.queue.states import ENDED, State
from orchestrator.service.context.caller import ANYBODY, Caller
from orchestrator.service.context.context import ServiceContext

_DONE = {
    NodeOrder.USE: "is used again",
    NodeOrder.CORDON: "takes nothing new",
    NodeOrder.DRAIN: "is drained: what runs there goes elsewhere",
}


def nodes(context: ServiceContext, caller: Caller = ANYBODY) -> Nodes:
    """Return all nodes, including gone nodes with an order, so that the order can be withdrawn.

    Jobs that the caller may not see are named `a job of TENANT`. Raises BackendUnreachable, StoreBroken.
    """
    inventory = context.machines.inventory()
    there, labels = {node.node_id: node for node in inventory.nodes}, inventory.labels
    given = context.store.node_rules()
    rules = rules_by_node(given, inventory.nodes)
    alive = {name for node in inventory.nodes for name in (node.node_id, node.name)}
    rules |= {rule.node_id: rule for rule in given if rule.node_id not in alive}
    held = _held(context.store.leases(held=True), caller)
    names = [*there, *(name for name in rules if name not in there)]
    return Nodes(
        nodes=tuple(_view(name, there.get(name), rules.get(name), held, labels.get(name, name)) for name in names),
        growth=format_growth(inventory),
    )


def order(context: ServiceContext, node_id: str, sent: NodeOrderSent, caller: Caller) -> NodeView:
    """Give an order about a node. Raises UnknownNode, Forbidden (not an admin), BackendUnreachable, StoreBroken."""
    caller.check_is_admin()
    known = [node.node_id for node in nodes(context).nodes]
    if node_id not in known:
        some = f": there are {', '.join(known[:20])}" if known else ": there are none"
        raise UnknownNode(f"there is no node {node_id!r}{did_you_mean(node_id, known) or some}")
    now_s, what = context.clock.now_s(), sent.order
    if sent.deadline_s is not None and what is not NodeOrder.DRAIN:
        raise QueueError(f"deadline_s goes with the order drain, and this one is {what}: leave it out")
    deadline_s = None if sent.deadline_s is None else now_s + sent.deadline_s
    label = context.machines.label(node_id)
    for other in _other_names(context, node_id, label, what):
        context.store.put_node_rule(NodeRule(other, NodeOrder.USE, caller.name, sent.reason, now_s))
    context.store.put_node_rule(NodeRule(label, what, caller.name, sent.reason, now_s, deadline_s))
    last = "" if deadline_s is None else f", from {format_time(deadline_s)} on also what may not be interrupted"
    said = f"{label} {_DONE[what]}{last}, by order of {caller.name}"
    said += f" ({sent.reason})" if sent.reason else ""
    data = {"node": node_id, "by": caller.name, "deadline_s": deadline_s}
    context.store.add_events([QueueEvent(now_s, what.value, said, data=data)])
    found = {node.node_id: node for node in nodes(context).nodes}
    # A gone node that is set to `use` disappears from the list.
    return found.get(node_id) or _view(node_id, None, None, {}, node_id)


def _other_names(context: ServiceContext, node_id: str, label: str, what: NodeOrder) -> set[str]:
    """Return the names by which older rules of a node are withdrawn, since its new rule is by its label.

    While two nodes have one name, their labels are ids. A rule by that name holds for both, until one is used again.
    """
    names = {node_id}
    if what is NodeOrder.USE:
        names |= {node.name for node in context.machines.inventory().nodes if node.node_id == node_id and node.name}
    return names - {label}


def _held(leases: Sequence[Lease], caller: Caller) -> Mapping[str, list[tuple[str, int]]]:
    held: dict[str, list[tuple[str, int]]] = {}
    for lease in leases:
        name = lease.job_id if caller.may_see(lease.tenant) else f"a job of {lease.tenant}"
        for node, workers in lease.placement:
            held.setdefault(node, []).append((name, workers))
    return held


def _view(
    node_id: str,
    node: Node | None,
    rule: NodeRule | None,
    held: Mapping[str, Sequence[tuple[str, int]]],
    label: str,
) -> NodeView:
    return NodeView(
        node_id=node_id,
        name=label,
        cpus=node.cpus if node else 0,
        gpus=node.gpus if node else 0,
        accelerator_type=node.accelerator_type if node else None,
        usable=node is not None and node.usable and rule is None,
        foreign_cpus=node.foreign_cpus if node else 0,
        foreign_gpus=node.foreign_gpus if node else 0,
        order=(rule.order if rule else NodeOrder.USE).value,
        by=rule.by if rule else "",
        reason=rule.reason if rule else "",
        since_s=rule.since_s if rule else None,
        held=tuple(held.get(node_id, ())),
        deadline_s=rule.deadline_s if rule else None,
    )


def release(context: ServiceContext, job: Job, caller: Caller) -> Job:
    """Close the lease of a STOPPING job, unless its driver may still run on a node that answers.

    A node answers if the cluster lists it as alive now. If the backend knows the driver's node, only this node counts;
    otherwise all nodes of the lease do.

    Raises:
        Forbidden: the caller is not an admin.
        NotReleasable: the job is not stopping, or a node answers.
        BackendUnreachable: the cluster does not say which nodes are alive.
    """
    caller.check_is_admin()
    if job.state is not State.STOPPING:
        what = "it has ended and holds no nodes" if job.state in ENDED else "cancel it first"
        raise NotReleasable(f"only a job that is stopping can be released, and {job.job_id} is {job.state}: {what}")
    alive = {node.node_id for node in context.backend.inventory().nodes}
    driver = next((one for one in context.backend.submissions() if one.submission == job.submission), None)
    nodes = {node for node, _ in job.placement} if driver is None or driver.node_id is None else {driver.node_id}
    if answering := sorted(nodes & alive):
        label = context.machines.label(answering[0])
        raise NotReleasable(
            f"{label} answers (the cluster lists it as alive), and the driver of {job.job_id} may still run there. The "
            "queue goes on ending it; end its processes there by hand, or take the node out of the cluster"
        )
    return context.store.release(job.job_id, job.attempt, context.clock.now_s(), caller.name)
