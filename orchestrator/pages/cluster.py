"""Output of the commands `nodes`, `tenants` and `usage`, as text. Makes no requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cluster.text import format_time, span
from orchestrator.api import NodeView, QuotaView, TenantView, UsageRow
from orchestrator.pages.tables import columns, cut
from orchestrator.queue.tenants import MEMBERS_MAX_PRIORITY

LONGEST_NODE: Final = 16  # characters; Ray's ids have 56, and each command accepts the beginning of an id


def nodes_page(nodes: Sequence[NodeView], width: int | None, growth: str = "") -> str:
    head = ("NODE", "STATE", "GPUS", "TYPE", "CPUS", "OUTSIDE", "HELD BY", "REASON")
    rows = [
        (
            _name_of(node, width),
            node_state(node),
            str(node.gpus) if node.gpus else "",
            node.accelerator_type or "",
            str(node.cpus),
            _outside(node),
            ", ".join(f"{job} ({workers})" for job, workers in node.held),
            f"{node.reason} ({node.by})" if node.reason else "",
        )
        for node in nodes
    ]
    page = columns(head, rows, width, ("OUTSIDE", "TYPE", "CPUS")) if rows else "the cluster has no nodes"
    return f"{page}\n{growth}" if growth else page


def _name_of(node: NodeView, width: int | None) -> str:
    if node.name and node.name != node.node_id:
        return node.name
    return node.node_id if width is None else cut(node.node_id, LONGEST_NODE)


def node_state(node: NodeView) -> str:
    if node.order == "drain":
        until = "" if node.deadline_s is None else f", until {format_time(node.deadline_s)}"
        return f"draining{until}" if node.held else "drained"
    if node.order == "cordon":
        return "cordoned"
    return "in use" if node.usable else "not usable"


def _outside(node: NodeView) -> str:
    """Format the external use of a node."""
    counts = ((node.foreign_gpus, "GPU"), (node.foreign_cpus, "CPU"))
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def tenants_page(tenants: Sequence[TenantView], width: int | None) -> str:
    head = ("TENANT", "WEIGHT", "GUARANTEED", "LIMIT", "RUNNING", "QUEUED", "GPUS HELD")
    rows = [
        (
            one.name,
            f"{one.weight:g}",
            format_quotas(one.guaranteed),
            format_quotas(one.limit),
            str(one.running),
            str(one.queued),
            str(one.gpus),
        )
        for one in tenants
    ]
    if not rows:
        return "there are no tenants. To create one: fleetune tenants set NAME"
    limits = [f"{one.name}: {words}" for one in tenants if (words := format_restrictions(one))]
    return "\n".join([columns(head, rows, width), *limits])


def format_restrictions(tenant: TenantView) -> str:
    """Describe the limits of a tenant's jobs, beyond GPUs; '': none are set."""
    one = tenant.restrictions
    found = [f"priority up to {one.max_priority}"] if one.max_priority != MEMBERS_MAX_PRIORITY else []
    found += [f"at most {one.max_queued_jobs:,} queued"] if one.max_queued_jobs is not None else []
    found += [f"at most {span(one.max_runtime_s)} for a job"] if one.max_runtime_s is not None else []
    if one.max_gpu_hours_per_month is not None:
        found.append(f"{tenant.gpu_hours or 0.0:,.1f} of {one.max_gpu_hours_per_month:,.1f} GPU-hours this month")
    found += [f"files under {', '.join(one.roots) or 'nothing'}"] if one.roots is not None else []
    found += [f"secrets {', '.join(one.secrets)}"] if one.secrets else []
    return "; ".join(found)


def format_quotas(quotas: Sequence[QuotaView]) -> str:
    """Format quotas, as in `8 A100, 16`."""
    return ", ".join(f"{one.gpus} {one.accelerator_type}" if one.accelerator_type else str(one.gpus) for one in quotas)


def usage_page(rows: Sequence[UsageRow], width: int | None) -> str:
    head = ("MONTH", "TENANT", "GPU-HOURS", "CPU-HOURS", "JOBS")
    shown = [(row.month, row.tenant, f"{row.gpu_hours:,.2f}", f"{row.cpu_hours:,.2f}", str(row.jobs)) for row in rows]
    if not shown:
        return "no usage"
    gpu, cpu = sum(row.gpu_hours for row in rows), sum(row.cpu_hours for row in rows)
    total = ("total", "", f"{gpu:,.2f}", f"{cpu:,.2f}", "")
    return columns(head, [*shown, total] if len(shown) > 1 else shown, width)
