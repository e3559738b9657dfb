"""Commands that show and configure the cluster: nodes, cordon, uncordon, drain, tenants, usage, events."""

from __future__ import annotations

import re
import time
from typing import Annotated
from urllib.parse import quote

import typer

from cluster.errors import InputError
from orchestrator.cli.completion import ANY, node_ids, tenant_names
from orchestrator.cli.help_groups import command_group
from orchestrator.cli.options import Json, OneTenant, Url, connected, duration_s, width
from orchestrator.cli.output import exit_on_error, json_list
from orchestrator.queue.records import NodeOrder
from orchestrator.queue.tenants import check_name

NodeIds = Annotated[
    list[str],
    typer.Argument(
        metavar="NODE", help="Node ids, or unique starts of them.", autocompletion=node_ids, show_default=False
    ),
]
WhyNode = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Text to show beside the node.")]
Quotas = list[str] | None
FOLLOW_S = 1.0  # seconds between requests for new events


def nodes(json_: Json = False, url: Url = None) -> None:
    """List the nodes, and the jobs on them."""
    with connected(url) as server:
        from orchestrator.api import Nodes
        from orchestrator.pages.cluster import nodes_page

        told = server.get("/v1/nodes", Nodes)
        typer.echo(json_list(told.nodes) if json_ else nodes_page(told.nodes, width(), told.growth))


def cordon(nodes: NodeIds, reason: WhyNode = "", json_: Json = False, url: Url = None) -> None:
    """Start no new jobs on nodes. Running jobs continue."""
    _order(nodes, NodeOrder.CORDON, reason, json_, url)


def uncordon(nodes: NodeIds, json_: Json = False, url: Url = None) -> None:
    """Use nodes again, after cordon or drain."""
    _order(nodes, NodeOrder.USE, "", json_, url)


def drain(
    nodes: NodeIds,
    reason: WhyNode = "",
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="TIME",
            help="After this time, also stop jobs with queue.preemptible: false, e.g. 2h [never].",
        ),
    ] = None,
    stop_all: Annotated[bool, typer.Option("--stop-all", help="Same as --deadline 0s.")] = False,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Move all jobs away from nodes. Jobs save, and continue elsewhere.

    A job that may not be interrupted (queue.preemptible: false, the default for commands) stays until it ends.
    """
    if stop_all and deadline is not None:
        raise InputError("--deadline and --stop-all exclude each other: give one of them")
    _order(nodes, NodeOrder.DRAIN, reason, json_, url, "0s" if stop_all else deadline)


def _order(
    given: list[str],
    order: NodeOrder,
    reason: str,
    as_json: bool,
    url: str | None,
    deadline: str | None = None,
) -> None:
    with connected(url) as server:
        from orchestrator.api import MOST_DEADLINE_S, NodeOrderSent, Nodes, NodeView
        from orchestrator.client.lookup import find_node
        from orchestrator.pages.cluster import nodes_page

        deadline_s = None if deadline is None else duration_s("--deadline", deadline, or_zero=True)
        if deadline_s is not None and deadline_s > MOST_DEADLINE_S:
            raise InputError(f"--deadline {deadline} is too long: at most {MOST_DEADLINE_S / 86400:.0f}d")
        if not reason.isprintable():
            raise InputError(f"--reason {reason[:100]!r} has characters that cannot be shown")
        sent = NodeOrderSent(order=order, reason=reason[:500], deadline_s=deadline_s)
        known = server.get("/v1/nodes", Nodes)
        meant = [find_node(known, one) for one in dict.fromkeys(given)]  # all are looked up before any is changed
        done = list[NodeView]()
        try:
            for one in meant:
                done.append(server.put(f"/v1/nodes/{quote(one.node_id, safe='')}", NodeView, sent))
        finally:  # also what was done before an error or Ctrl-C
            if done:
                typer.echo(json_list(done) if as_json else nodes_page(done, width()))


tenants = command_group(
    name="tenants",
    help="List tenants, and set their shares.",
    epilog="Example:  fleetune tenants  |  fleetune tenants set vision --weight 2 --limit 16",
    invoke_without_command=True,
)


@tenants.callback()
def _tenants(context: typer.Context, json_: Json = False, url: Url = None) -> None:
    if context.invoked_subcommand is None:
        with exit_on_error():
            tenants_list(json_, url)
    else:  # options before the subcommand are its defaults
        context.default_map = {context.invoked_subcommand: context.params}


@tenants.command("list", epilog="Example:  fleetune tenants list --json")
def tenants_list(json_: Json = False, url: Url = None) -> None:
    """List tenants: shares, limits, GPUs in use."""
    with connected(url) as server:
        from orchestrator.api import Tenants
        from orchestrator.pages.cluster import tenants_page

        told = server.get("/v1/tenants", Tenants)
        typer.echo(json_list(told.tenants) if json_ else tenants_page(told.tenants, width()))


@tenants.command("set", epilog="Example:  fleetune tenants set vision --weight 2 --guaranteed A100=8 --limit 16")
def tenants_set(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of the tenant; it is created if it does not exist.",
            autocompletion=tenant_names,
            show_default=False,
        ),
    ],
    weight: Annotated[
        float | None, typer.Option("--weight", metavar="W", help="Weight in fair sharing; 2 gets twice as much as 1.")
    ] = None,
    guaranteed: Annotated[
        Quotas,
        typer.Option("--guaranteed", metavar="[TYPE=]N", help="GPUs guaranteed to the tenant; repeatable, or none."),
    ] = None,
    limit: Annotated[
        Quotas, typer.Option("--limit", metavar="[TYPE=]N", help="Most GPUs in use at once; repeatable, or none.")
    ] = None,
    max_priority: Annotated[
        str | None,
        typer.Option("--max-priority", metavar="N", help="Highest priority that members may use; none: no limit [0]."),
    ] = None,
    max_queued_jobs: Annotated[
        str | None, typer.Option("--max-queued", metavar="N", help="Most waiting jobs, or none.")
    ] = None,
    max_runtime_s: Annotated[
        str | None, typer.Option("--max-runtime", metavar="TIME", help="Longest run time of a job, e.g. 24h, or none.")
    ] = None,
    max_gpu_hours_per_month: Annotated[
        str | None,
        typer.Option(
            "--max-gpu-hours",
            metavar="N",
            help="GPU-hours per calendar month (UTC), after which no job with GPUs starts; or none.",
        ),
    ] = None,
    roots: Annotated[
        list[str] | None,
        typer.Option(
            "--root", metavar="PATH", help="Directory or URL that must contain the tenant's files; repeatable, or none."
        ),
    ] = None,
    secrets: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="NAME", help="Secret of the server that the tenant's jobs may use; repeatable, or none."
        ),
    ] = None,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Create a tenant, or change the given settings of a tenant."""
    with connected(url) as server:
        from orchestrator.cli.tenant_settings import put_settings, settings
        from orchestrator.pages.cluster import tenants_page

        check_name(name)
        told = put_settings(server, name, lambda now: settings(now, weight, guaranteed, limit, context.params))
        typer.echo(told.model_dump_json() if json_ else tenants_page([told], width()))


def usage(
    month: Annotated[
        str | None, typer.Option("--month", metavar="YYYY-MM", help="Show only this month (UTC) [the newest twelve].")
    ] = None,
    tenant: OneTenant = None,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Show the GPU-hours of tenants, by month."""
    with connected(url) as server:
        from orchestrator.api import MONTH, Usage
        from orchestrator.client.lookup import find_tenant
        from orchestrator.pages.cluster import usage_page

        if month is not None and not re.fullmatch(MONTH, month):
            raise InputError(f"--month {month!r} is not a month: write it as in 2026-11")
        whose = None if tenant is None else find_tenant(server, tenant)
        told = server.get("/v1/usage", Usage, {"month": month, "tenant": whose})
        typer.echo(json_list(told.rows) if json_ else usage_page(told.rows, width()))


def events(
    job: Annotated[
        str | None, typer.Option("--job", metavar="JOB", help="Show only events of this job.", autocompletion=ANY)
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, max=10_000, help="Print at most N of the newest events.")
    ] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Print new events until Ctrl-C.")] = False,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Show past events of jobs, nodes and servers.

    With --json, each line is one JSON object.
    """
    with exit_on_error(0 if follow else None), connected(url) as server:
        from orchestrator.client.lookup import find_job, job_path
        from orchestrator.client.readers import EventReader
        from orchestrator.pages.queue import event_lines

        path = "/v1/events" if job is None else f"{job_path(find_job(server, job).job_id)}/events"
        reader = EventReader(server, path)
        shown = reader.newest(limit)
        while True:
            for line in (one.model_dump_json() for one in shown) if json_ else event_lines(shown):
                typer.echo(line)
            if not follow:
                return
            time.sleep(FOLLOW_S)
            shown = reader.new()
