"""Prints the logs of a job, for `fleetune logs` and `fleetune submit --follow`; and why it waits, until it starts.

Also formats the end of a log, for `fleetune status`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import chain
from typing import Final

import typer

from cluster.errors import FleetuneError, InputError
from cluster.text import long_duration, many
from orchestrator.api import JobView, LogSources, WhyView
from orchestrator.client.connection import Connection
from orchestrator.client.log_reader import (
    ALL,
    TAIL_LINES,
    LogLine,
    LogReader,
    follow_lines,
    last_lines,
    log_of_end,
    run_logs,
)
from orchestrator.client.lookup import job_path
from orchestrator.pages.tables import printable, printable_lines
from orchestrator.queue.names import OUTPUT, output_of
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, State
from orchestrator.queue.wording import does

NAMED = 5  # most logs to name in a line
END_LINES: Final = 10

FIRST_S, EVERY_S = 1.5, 15.0


def print_logs(
    connection: Connection, job: JobView, *, follow: bool, source: str | None, tail: int | None, as_json: bool
) -> JobView:
    """Print the lines of a job. Returns the job's last known state; with `follow`, it has ended.

    Raises:
        InputError: the job has ended without such a log.
    """
    last, printed = job, False
    report = WaitReport(connection, lambda text: typer.echo(text, err=True))

    def look() -> JobView:
        nonlocal last
        last = connection.get(job_path(job.job_id), JobView)
        report.look(last)
        return last

    reader = LogReader(connection, job.job_id, source)
    lines = reader.new(job.attempt) if tail is None else reader.last(job.attempt, tail)
    rest = follow_lines(reader, look) if follow else reader.rest() if job.state in ENDED else ()
    for line in chain(lines, rest):
        printed = True
        _print(line, source, as_json)
    if source is None:
        _of_run(connection, last, TAIL_LINES if tail is None else tail, as_json)
    if not printed:
        _nothing_printed(connection, last, source, quiet=as_json or tail == 0)
    return last


def log_end(connection: Connection, job: JobView) -> str:
    """Return the end of a failed job's log, for the page of `fleetune status`; '': there is none."""
    if job.state is not State.FAILED or not job.attempt:
        return ""
    try:
        source, text = log_of_end(connection, job, END_LINES)
    except FleetuneError as error:
        return f"the log cannot be read: {error}"
    return "\n  ".join([f"end of {source}:", *printable_lines(text).split("\n")]) if text else ""


def _nothing_printed(connection: Connection, job: JobView, source: str | None, *, quiet: bool) -> None:
    """Say that a log is empty or does not exist yet. Raises InputError: the job has ended without it."""
    known = connection.get(f"{job_path(job.job_id)}/logs", LogSources).sources if source not in (None, ALL) else ()
    which = {None: OUTPUT, ALL: "logs", OUTPUT: OUTPUT}.get(source, f"log {source}")
    if job.state not in ENDED:
        said = f"job {job.job_id} has no {which} yet: it is {job.state}"
    elif source in (None, ALL, OUTPUT):
        said = f"job {job.job_id} has no {which}"
    elif source in known or source == output_of(job.attempt):
        said = f"the {which} of job {job.job_id} is empty"
    else:
        there = f": there are {', '.join(known)}, and all" if known else ", and no other one"
        raise InputError(f"job {job.job_id} has no log {source!r}{there}")
    if not quiet:
        typer.echo(said, err=True)


def _of_run(connection: Connection, job: JobView, count: int, as_json: bool) -> None:
    """Print the end of the failed rank's log, and name the logs besides the output."""
    try:
        logs, rank = run_logs(connection, job)
        for line in last_lines(connection, job, rank, count) if rank else ():
            _print(line, None, as_json)
    except FleetuneError:  # the requested output is printed already
        return
    if logs and not as_json:
        names = ", ".join(logs[:NAMED]) + (f" and {many(len(logs) - NAMED, 'other')}" if len(logs) > NAMED else "")
        command = f"fleetune logs {job.job_id} --source NAME, or --source all"
        typer.echo(f"more logs: {names}. To see them: {command}", err=True)


def _print(line: LogLine, source: str | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"source": line.source, "text": line.text}))
    else:
        text = printable(line.text)
        typer.echo(text if source not in (None, ALL) else f"{line.source} | {text}")


class WaitReport:
    """Reports about one waiting job.

    Args:
        say: takes one line for people.
        first_s, every_s: seconds until the first request to the server, and at least between requests.
    """

    def __init__(
        self, connection: Connection, say: Callable[[str], None], first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        self._connection, self._say, self._every_s = connection, say, every_s
        self._ask_at_s = time.monotonic() + first_s
        self._said = ""

    def look(self, view: JobView) -> None:
        """Report what is new. Called repeatedly with the job's current state."""
        if view.state in HOLDS_A_LEASE and self._said:
            self._said = ""
            on = ", ".join(node for node, _ in view.on or view.placement)
            self._say(f"{view.job_id} starts on {on} after {long_duration(view.waited_s)}")
        if view.state is not State.QUEUED or time.monotonic() < self._ask_at_s:
            return
        self._ask_at_s = time.monotonic() + self._every_s
        try:
            told = self._connection.get(f"{job_path(view.job_id)}/why", WhyView)
        except FleetuneError:  # the user asked for logs, so a missing explanation is not an error
            return
        reason = told.reason or f"{view.job_id} {does(view.state)}"  # older servers send no reason
        if reason != self._said:  # the expected start changes all the time
            self._said = reason
            self._say(f"{reason}; expected start: {told.expected}" if told.expected else reason)
