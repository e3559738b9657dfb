"""Commands that change jobs: cancel, pause, resume, retry, release, priority."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import FleetuneError, InputError
from jobs.spec.queue import MOST_PRIORITY
from orchestrator.cli import completion as completing
from orchestrator.cli.options import Json, Url, connected, job_ids
from orchestrator.cli.output import echo_if_read, json_list
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, DesiredState

if TYPE_CHECKING:
    from orchestrator.api import JobView, Priority


def cancel(jobs: Annotated[list[str], job_ids(completing.TO_CANCEL)], json_: Json = False, url: Url = None) -> None:
    """Cancel jobs, running or waiting.

    Jobs that were submitted with --after one of them will fail.
    """
    _ask_all(jobs, "cancel", json_, url)


def pause(jobs: Annotated[list[str], job_ids(completing.TO_PAUSE)], json_: Json = False, url: Url = None) -> None:
    """Make jobs save, free their nodes, and wait for `resume`.

    A training job continues from its checkpoint. A command starts from the beginning, unless it saves its state itself.
    """

    def said(view: JobView) -> str:
        again = "; after resume, a command starts from the beginning" if view.kind == "command" and view.attempt else ""
        return f"{_said(view)}{again}"

    _ask_all(jobs, "pause", json_, url, said)


def resume(jobs: Annotated[list[str], job_ids(completing.TO_RESUME)], json_: Json = False, url: Url = None) -> None:
    """Resume paused jobs; training resumes from its checkpoint."""
    _ask_all(jobs, "resume", json_, url)


def retry(jobs: Annotated[list[str], job_ids(completing.TO_RETRY)], json_: Json = False, url: Url = None) -> None:
    """Queue failed or cancelled jobs again.

    If a job was submitted with --after a job that has failed, give both. Alone, it would fail again.
    """
    _ask_all(jobs, "retry", json_, url)


def release(
    jobs: Annotated[list[str], job_ids(completing.TO_CANCEL)],
    force: Annotated[
        bool, typer.Option("--force", help="Confirm that the driver is gone: if not, the job runs twice.")
    ] = False,
    json_: Json = False,
    url: Url = None,
) -> None:
    """Free the nodes of jobs that cannot be stopped.

    Only admins may do this, and only once the cluster no longer lists the driver's node as alive.
    """
    if not force:
        raise InputError(
            "release frees nodes although the driver was not seen to end. Make sure that its machine is off, then "
            "give --force"
        )
    _ask_all(jobs, "release", json_, url)


def priority(
    jobs: Annotated[list[str], job_ids(completing.NOT_ENDED)],
    to: Annotated[int, typer.Option("--to", metavar="N", help="-1000 to 1000; higher priorities start first.")],
    json_: Json = False,
    url: Url = None,
) -> None:
    """Change the priority of jobs."""
    from orchestrator.api import Priority

    if not -MOST_PRIORITY <= to <= MOST_PRIORITY:
        raise InputError(f"--to {to} is out of range: a priority is {-MOST_PRIORITY} to {MOST_PRIORITY}")
    told = Priority(priority=to)
    _ask_all(jobs, "priority", json_, url, lambda view: f"{_said(view)}, priority {view.priority}", told)


def _ask_all(
    given: list[str],
    what: str,
    as_json: bool,
    url: str | None,
    said: Callable[[JobView], str] | None = None,
    body: Priority | None = None,
) -> None:
    """Request a change of each job, and print a line for each. A refusal does not stop the others."""
    with connected(url) as server:
        from orchestrator.api import JobView
        from orchestrator.client.lookup import find_job, job_path

        def order(job: JobView) -> JobView:
            path = f"{job_path(job.job_id)}/{what}"
            return server.post(path, JobView) if body is None else server.put(path, JobView, body)

        codes = [0]
        found = [_tried(partial(find_job, server, one), codes) for one in given]
        meant = {view.number: view for view in found if view is not None}
        # Parents have lower numbers: a child that is retried before its parent would fail again.
        codes.append(order_each([meant[number] for number in sorted(meant)], order, said or _said, as_json))
        raise typer.Exit(max(codes))


def order_each(
    jobs: Sequence[JobView], order: Callable[[JobView], JobView], said: Callable[[JobView], str], as_json: bool
) -> int:
    """Request a change of each job, and print the answers: each as it comes, or as JSON one list at the end.

    If an error or Ctrl-C ends this early, what was done is printed all the same.

    Args:
        order: requests the change, and returns the job.
        said: describes a job.

    Returns:
        The exit code: the worst one of refusals, which stop no other request.
    """
    codes, asked = [0], 0
    done: list[JobView] = []
    try:
        for job in jobs:
            view = _tried(partial(order, job), codes)
            asked += 1
            if view is not None:
                done.append(view)
                if not as_json:
                    echo_if_read(f"{view.job_id}  {said(view)}")
        return max(codes)
    finally:
        if as_json:
            echo_if_read(json_list(done))
        if 0 < asked < len(jobs):
            said_of = f"the server has answered for {asked} of {len(jobs)} jobs"
            typer.echo(f"{said_of}: repeat the command for the others", err=True)


def _tried(ask: Callable[[], JobView], codes: list[int]) -> JobView | None:
    """Return the answer; None: it is a refusal of this job, which is printed, and whose exit code joins `codes`.

    Raises:
        FleetuneError: every other request would meet the same error.
    """
    from orchestrator.client.connection import NoServer, NotAServer, TokenRefused

    try:
        return ask()
    except (NoServer, NotAServer, TokenRefused):
        raise
    except FleetuneError as error:
        typer.echo(f"error: {error}", err=True)
        codes.append(error.exit_code)
        return None


def _said(view: JobView) -> str:
    """Describe the state of a job, or the change that was requested."""
    words = {DesiredState.CANCEL: "asked to end", DesiredState.PAUSE: "asked to pause"}
    if view.state in ENDED:
        return str(view.state)
    if view.state in HOLDS_A_LEASE and view.wanted in words:
        return f"{words[view.wanted]} ({view.state})"
    if view.wanted is DesiredState.PAUSE:
        return "paused"
    return words.get(view.wanted, str(view.state))
