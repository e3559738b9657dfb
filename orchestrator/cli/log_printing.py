"""How `fleetune logs` and `fleetune submit --follow` print the lines of a job."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator

import typer

from jobs.errors import FleetuneError
from orchestrator.api import JobView
from orchestrator.cli.waiting import WaitingNews
from orchestrator.client.connection import Connection
from orchestrator.client.log_reader import (
    ALL,
    TAIL_LINES,
    LogLine,
    LogReader,
    followed,
    last_lines,
    run_logs,
)
from orchestrator.client.lookup import job_path
from orchestrator.queue.states import ENDED

NAMED = 5  # logs in a line

# Escape sequences other than colours; then all that is no character of a text.
_CONTROL = re.compile(
    r"\x1b\[[0-9;:?]*[ -/]*[@-ln-~]"  # that moves, erases, asks
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, clipboards
    r"|\x1b(?!\[[0-9;]*m)"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f\x80-\x9f]"
)


def print_logs(
    connection: Connection, job: JobView, *, follow: bool, source: str | None, tail: int | None, as_json: bool
) -> JobView:
    """The job as it was last seen; with `follow`, it has ended. Raises InputError: it has no such log."""
    last, printed = job, False
    news = WaitingNews(connection, lambda text: typer.echo(text, err=True))

    def look() -> JobView:
        nonlocal last
        last = connection.get(job_path(job.job_id), JobView)
        news.look(last)
        return last

    reader = LogReader(connection, job.job_id, source)
    lines: Iterable[LogLine] = _there(reader, job)
    if tail is not None:
        lines = _last(lines, tail)
    for line in lines:
        printed = True
        _print(line, source, as_json)
    if follow:
        for line in followed(reader, look):
            printed = True
            _print(line, source, as_json)
    if source is None:
        _of_run(connection, last, TAIL_LINES if tail is None else tail, as_json)
    if not printed and not as_json:
        which = {None: "output", ALL: "logs"}.get(source, f"log {source}")
        yet = "" if last.state in ENDED else f" yet: it is {last.state}"
        typer.echo(f"job {job.job_id} has no {which}{yet}", err=True)
    return last


def _of_run(connection: Connection, job: JobView, count: int, as_json: bool) -> None:
    """Print the end of the log of the rank that failed, and say which logs there are besides the output."""
    try:
        logs, rank = run_logs(connection, job)
        for line in last_lines(connection, job, rank, count) if rank else ():
            _print(line, None, as_json)
    except FleetuneError:  # the output is what was asked for, and it is printed
        return
    if logs and not as_json:
        names = ", ".join(logs[:NAMED]) + (f" and {len(logs) - NAMED} others" if len(logs) > NAMED else "")
        command = f"fleetune logs {job.job_id} --source NAME, or --source all"
        typer.echo(f"more logs: {names}. To see them: {command}", err=True)


def _there(reader: LogReader, job: JobView) -> Iterator[LogLine]:
    yield from reader.new(job.attempt)
    if job.state in ENDED:
        yield from reader.rest()


def _last(lines: Iterable[LogLine], count: int) -> Iterator[LogLine]:
    """The last lines of each log."""
    kept: dict[str, deque[LogLine]] = {}
    for line in lines:
        kept.setdefault(line.source, deque(maxlen=count)).append(line)
    for last in kept.values():
        yield from last


def _print(line: LogLine, source: str | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"source": line.source, "text": line.text}))
    else:
        text = printable(line.text)
        typer.echo(text if source not in (None, ALL) else f"{line.source} | {text}")


def printable(text: str) -> str:
    """As a terminal would leave it: of a line that was drawn several times the last, and nothing that moves elsewhere.

    A log may hold anything. Colours are left in it.
    """
    drawn = next((part for part in reversed(text.split("\r")) if part), "")
    return _CONTROL.sub("", drawn)
