"""Completion of the command line: the shells' scripts, and the ids of jobs, which the server knows."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from orchestrator.cli.edge import edge

QUICK_S = 0.8  # a shell waits for this at every Tab


def job_ids(incomplete: str) -> list[str]:
    """Newest first; nothing where anything goes wrong."""
    try:
        from orchestrator.api import JobPage
        from orchestrator.discovery import connect

        connection = connect(patience_s=0.0, answer_s=QUICK_S)
        page = connection.get("/v1/jobs", JobPage, {"name": incomplete or None, "limit": 50})
        return [job.job_id for job in page.jobs]
    except Exception:
        return []


def node_ids(incomplete: str) -> list[str]:
    try:
        from orchestrator.api import Nodes
        from orchestrator.discovery import connect

        nodes = connect(patience_s=0.0, answer_s=QUICK_S).get("/v1/nodes", Nodes).nodes
        return [name for node in nodes if (name := node.name or node.node_id).startswith(incomplete)]
    except Exception:
        return []


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the script that completes commands and job ids.

    To have it in every shell: `fleetune completion bash >> ~/.bashrc`, or `fleetune completion zsh > DIR/_fleetune`
    with a DIR of fpath, or `fleetune completion fish > ~/.config/fish/completions/fleetune.fish`.
    """
    with edge():
        from typer.completion import get_completion_script  # type: ignore[attr-defined]

        typer.echo(get_completion_script(prog_name="fleetune", complete_var="_FLEETUNE_COMPLETE", shell=shell))
