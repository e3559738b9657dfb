"""Shell completion: the scripts, and completions of ids, names and logs, which the server knows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.queue.states import UNFINISHED, State

if TYPE_CHECKING:
    from orchestrator.api import JobView
    from orchestrator.client.connection import Connection

QUICK_S = 0.8  # seconds; the shell waits for this at every Tab
OFFERED = 50  # most completions

Offers = Callable[[typer.Context, str], list[str]]


def jobs_that(states: Collection[str] = (), where: Callable[[JobView], bool] | None = None) -> Offers:
    """Make a completion function for ids of jobs, newest first. On any error it offers nothing.

    Args:
        states: only jobs in these states; empty: all.
        where: only jobs for which this is true.
    """

    def offered(context: typer.Context, incomplete: str) -> list[str]:
        typed = context.params.get("jobs") or ()
        try:
            from orchestrator.api import MOST_PAGE, JobPage

            limit = OFFERED if where is None else MOST_PAGE
            asked = {"name": incomplete or None, "state": list(states) or None, "limit": limit}
            page = _server(context).get("/v1/jobs", JobPage, asked)
            ids = [job.job_id for job in page.jobs if where is None or where(job)]
            return [one for one in ids[:OFFERED] if one not in typed]
        except Exception:
            return []

    return offered


ANY = jobs_that()
TO_CANCEL = jobs_that(UNFINISHED, lambda job: job.wanted != "cancel")
TO_PAUSE = jobs_that(UNFINISHED, lambda job: job.wanted == "run")
TO_RESUME = jobs_that(UNFINISHED, lambda job: job.wanted == "pause")
TO_RETRY = jobs_that(("failed", "cancelled"))
NOT_ENDED = jobs_that(UNFINISHED)
TO_COME_AFTER = jobs_that((*UNFINISHED, "succeeded"), lambda job: job.wanted != "cancel")


def node_ids(context: typer.Context, incomplete: str) -> list[str]:
    try:
        from orchestrator.api import Nodes

        nodes = _server(context).get("/v1/nodes", Nodes).nodes
        return [name for node in nodes if (name := node.name or node.node_id).startswith(incomplete)]
    except Exception:
        return []


def tenant_names(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the names of tenants that the caller may see."""
    try:
        from orchestrator.api import Tenants

        known = _server(context).get("/v1/tenants", Tenants).tenants
        return [one.name for one in known if one.name.startswith(incomplete)]
    except Exception:
        return []


def state_names(incomplete: str) -> list[str]:
    """Offer names of states, for the last part of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{state}" for state in State if state.startswith(last)]


def sources(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the logs of the job that the command line names."""
    try:
        from orchestrator.api import LogSources
        from orchestrator.client.log_reader import ALL
        from orchestrator.client.lookup import find_job, job_path
        from orchestrator.queue.names import OUTPUT

        server = _server(context)
        # While an option has no value yet, the job is only among the arguments that are not parsed.
        job = find_job(server, context.params.get("job") or context.args[0])
        found = server.get(f"{job_path(job.job_id)}/logs", LogSources).sources
        return [one for one in dict.fromkeys((OUTPUT, *found, ALL)) if one.startswith(incomplete)]
    except Exception:
        return []


def _server(context: typer.Context) -> Connection:
    """Connect to the server that the command line names, also before a subcommand."""
    from orchestrator.client.discovery import connected

    named = (one.params.get("url") for one in (context, context.parent) if one is not None)
    return connected(
        next(filter(None, named), None), patience_s=0.0, answer_s=QUICK_S
    ).__enter__()  # the end of this process closes it


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the shell script that completes commands and job ids.

    To enable it in every shell: `fleetune completion bash >> ~/.bashrc`, or `fleetune completion zsh > DIR/_fleetune`
    with a DIR of fpath, or `fleetune completion fish > ~/.config/fish/completions/fleetune.fish`.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="fleetune", complete_var="_FLEETUNE_COMPLETE", shell=shell))
