"""The command `fleetune submit`: reads and checks specs, and sends them to the server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion as completing
from orchestrator.cli.options import Json, Set, Url, connected
from orchestrator.cli.output import json_list

if TYPE_CHECKING:
    from orchestrator.api import JobView


def submit(
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC", help="YAML or JSON files, or URLs.", show_default=False)
    ],
    set_: Set = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=VALUE,VALUE",
            help="Queue one job for each value; if repeated, one for each combination.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Start of the job's id.")] = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="NAME", help="Tenant of the job.", autocompletion=completing.tenant_names),
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", metavar="N", help="-1000 to 1000; higher priorities start first [0].")
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            metavar="JOB",
            help="Start only after this job has succeeded; repeatable.",
            autocompletion=completing.TO_COME_AFTER,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="TEXT", help="Repeating a submission with the same key makes no new jobs."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Check model, data and memory before submitting.")
    ] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the jobs end; see the exit codes.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Like --wait, and print the logs.")] = False,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Queue jobs, all of them or none, and print their ids.

    Messages go to stderr. Exit codes with --wait: 0 all jobs succeeded; 1 a job failed, or the server does not answer;
    2 a job failed because its input is wrong, or nothing was queued; 130 a job was cancelled; 141 nobody reads the
    output any more.
    """
    from orchestrator.cli.submission import SubmitOptions, submit_all, wait_for

    overrides = (*(set_ or ()), *((f"name={json.dumps(name)}",) if name is not None else ()))
    options = SubmitOptions(
        tuple(specs), overrides, tuple(sweep or ()), tenant, priority, tuple(after or ()), key, check, follow
    )
    with connected(url) as server:
        jobs = submit_all(server, options, _say)
        waits = wait or follow
        if not (json_ and waits):  # JSON follows at the end; the messages of `submit_all` have the ids
            _show(jobs, json_)
        if waits:
            ended = wait_for(server, jobs, follow=follow, as_json=json_, say=_say)
            if json_:
                _show(ended, True)
            raise typer.Exit(_exit_code(ended))


def _show(jobs: list[JobView], as_json: bool) -> None:
    if as_json:
        typer.echo(json_list(jobs))
    else:
        for job in jobs:
            typer.echo(job.job_id)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _exit_code(jobs: list[JobView]) -> int:
    """Return the exit code of the worst result."""
    from orchestrator.api import exit_code_of

    codes = {exit_code_of(job.state, job.reason) for job in jobs}
    return next((one for one in (2, 1, 130) if one in codes), 0)
