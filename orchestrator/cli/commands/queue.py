"""Commands that show the queue: queue, status, logs, why."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cluster.errors import FleetuneError, InputError
from cluster.text import did_you_mean
from jobs.storage import strict_json
from orchestrator.cli import completion as completing
from orchestrator.cli.options import JobId, Json, OneTenant, Url, connected, width
from orchestrator.cli.output import exit_on_error, json_list
from orchestrator.queue.states import ENDED, DesiredState, State

if TYPE_CHECKING:
    from orchestrator.api import JobView, WhyView
    from orchestrator.client.connection import Connection

EXPLAINED: Final = 3  # number of waiting jobs, from the first, whose expected start is requested
LOGS_PATIENCE_S: Final = 60.0  # seconds; `logs --follow` outlasts a longer restart of the server than other commands
LAST_EVENTS: Final = 10
LISTED: Final = 50  # jobs of the table


def queue(
    all_: Annotated[bool, typer.Option("--all", help="Also list jobs that have ended.")] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help="List only jobs in this state: queued, running, failed, ...; repeatable.",
            autocompletion=completing.state_names,
        ),
    ] = None,
    tenant: OneTenant = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, max=10_000, help="List at most this many jobs [50; with --json, all]."
        ),
    ] = None,
    json_: Json = False,
    url: Url = None,
) -> None:
    """List running jobs, and waiting jobs by priority and submission.

    TIME is how long a job has run or waited, or how long ago it ended. NEXT is when it is expected to start or end, or
    how it ended.
    """
    with connected(url) as server:
        from orchestrator.client.lookup import find_tenant, removed_jobs
        from orchestrator.client.readers import LOOKED_AT, QueueReader
        from orchestrator.pages.queue import in_order, queue_page

        asked = _states(state)
        states = asked or [one for one in State if all_ or one not in ENDED]
        most = limit or (sys.maxsize if json_ else LISTED)
        looked_at = max(most, LOOKED_AT) if json_ else LOOKED_AT
        reader = QueueReader(server, tenant if tenant is None else find_tenant(server, tenant), looked_at)
        counts = reader.counts()
        jobs = in_order(reader.jobs(states, most))[:most]
        if json_:
            typer.echo(json_list(jobs))
            return
        told = {one: count for one, count in counts.items() if one in asked} if asked else counts
        whys = _whys(server, jobs)
        notes = reader.set_aside, reader.unanswered
        typer.echo(queue_page(jobs, told, whys, time.time(), width(), asked, *notes))
        if all_ and (old := removed_jobs(server)):
            typer.echo(old)


def status(job: JobId, json_: Json = False, url: Url = None) -> None:
    """Show one job: state and reason, step, metrics, events."""
    with connected(url) as server:
        from orchestrator.cli.log_printing import log_end
        from orchestrator.client.lookup import find_job, job_path
        from orchestrator.client.readers import EventReader
        from orchestrator.pages.queue import status_page

        found = find_job(server, job)
        events = EventReader(server, f"{job_path(found.job_id)}/events").newest(LAST_EVENTS)
        if json_:
            told = found.model_dump(mode="json") | {"events": [one.model_dump(mode="json") for one in events]}
            typer.echo(strict_json.for_programs(told))
            return
        why = _whys(server, [found]).get(found.job_id)
        typer.echo(status_page(found, why, events, time.time(), log_end(server, found)))


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Print new lines until the job has ended.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Print one log (output, driver, rank-0, ...), or all.",
            autocompletion=completing.sources,
        ),
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Print only this many lines from the end of each log.")
    ] = None,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Print the output of a job, in the order of its attempts.

    If a rank made a training job fail, the end of that rank's log follows. --source all also prints the logs of the
    driver and of all ranks, one after another. Each line begins with the name of its log, unless --source names one.
    With -f, the command follows all attempts until the job has ended.
    """
    with exit_on_error(130 if follow else None), connected(url, LOGS_PATIENCE_S) as server:
        from orchestrator.cli.log_printing import print_logs
        from orchestrator.client.lookup import find_job

        print_logs(server, find_job(server, job), follow=follow, source=source, tail=tail, as_json=json_)


def why(job: JobId, json_: Json = False, url: Url = None) -> None:
    """Explain why a job waits, and when it may start."""
    with connected(url) as server:
        from orchestrator.api import WhyView
        from orchestrator.client.lookup import find_job, job_path

        told = server.get(f"{job_path(find_job(server, job).job_id)}/why", WhyView)
        typer.echo(told.model_dump_json() if json_ else told.text)


def _states(given: list[str] | None) -> list[State]:
    """Parse `--state`. Raises InputError."""
    names = [part.strip().lower() for one in given or () for part in one.split(",")]
    for name in names:
        if name not in list(State):
            hint = did_you_mean(name, list(State)) or f": there are {', '.join(State)}"
            raise InputError(f"--state {name!r} is not a state{hint}")
    return [State(name) for name in dict.fromkeys(names)]


def _whys(server: Connection, jobs: list[JobView]) -> dict[str, WhyView]:
    """Request why the first waiting jobs wait; empty if the server cannot tell at the moment."""
    from orchestrator.api import WhyView
    from orchestrator.client.lookup import job_path

    waiting = [job for job in jobs if job.state is State.QUEUED and job.wanted is DesiredState.RUN]
    try:
        return {job.job_id: server.get(f"{job_path(job.job_id)}/why", WhyView) for job in waiting[:EXPLAINED]}
    except FleetuneError:
        return {}
