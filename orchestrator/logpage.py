"""How `fleetune logs` and `fleetune submit --follow` print the lines of a job."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator

import typer

from orchestrator.api import JobView
from orchestrator.connection import Connection
from orchestrator.jobref import job_path
from orchestrator.logreading import LogLine, LogReader, followed
from orchestrator.queue.states import ENDED
from orchestrator.queuepage import size_words


def print_logs(
    connection: Connection, job: JobView, *, follow: bool, source: str | None, tail: int | None, as_json: bool
) -> JobView:
    """The job as it was last seen; with `follow`, it has ended. Raises InputError: it has no such log."""
    last, printed = job, False

    def look() -> JobView:
        nonlocal last
        last = connection.get(job_path(job.job_id), JobView)
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
    if not printed and not as_json:
        what = "it has ended without writing any" if last.state in ENDED else f"it is {last.state}, {size_words(last)}"
        typer.echo(f"job {job.job_id} has no {f'log {source}' if source else 'logs'} yet: {what}", err=True)
    return last


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
        typer.echo(line.text if source else str(line))
