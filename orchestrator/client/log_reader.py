"""The logs of a job, line by line, as they grow."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final
from urllib.parse import quote

from cluster.errors import InputError
from cluster.text import did_you_mean
from jobs.run.paths import rank_name
from orchestrator.api import JobView, LogPart, LogSources
from orchestrator.client.connection import Connection, Params
from orchestrator.client.lookup import job_path
from orchestrator.queue.names import OUTPUT, output_of
from orchestrator.queue.states import ENDED, State

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 1.0
ALL: Final = "all"  # as a source: every log
TAIL_LINES: Final = 20
_ATTEMPT = re.compile(rf"^{OUTPUT}(-[0-9]+)?$")
_LATER = re.compile(rf"^(rank-[0-9]+|{OUTPUT}-[0-9]+)$")  # logs that may appear later


@dataclass(frozen=True)
class LogLine:
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source} | {self.text}"


class LogReader:
    """Reads logs of a job, each line once.

    Args:
        source: name of one log. None: the output of the job's attempts. ALL: also the logs of its run, one after
            another, since most of their lines have no time. Logs that appear later are included.
    """

    def __init__(self, connection: Connection, job_id: str, source: str | None = None) -> None:
        self._connection, self._source = connection, source
        self._path = f"{job_path(job_id)}/logs"
        self._next: dict[str, int] = {}
        self._begun: dict[str, str] = {}  # source -> its last line, as long as it is incomplete
        self._ended: set[str] = set()
        self._first_attempt: int | None = None

    def new(self, attempt: int) -> Iterator[LogLine]:
        """Yield lines that were not read yet. `attempt`: the job's newest attempt.

        Raises:
            InputError: the job has logs, but not the requested one.
        """
        if self._first_attempt is None:
            self._first_attempt = attempt
        for source in self._sources(attempt):
            yield from self._of(source)

    def last(self, attempt: int, count: int) -> Iterator[LogLine]:
        """Yield the last lines of each log, without reading what is before them. `new` goes on behind them."""
        if self._first_attempt is None:
            self._first_attempt = attempt
        for source in self._sources(attempt):
            end = self._part(source, {"last": True})
            is_enough = not end.begin or end.text.count("\n") >= count  # an older server sends the first part
            lines = self._lines(source, end) if is_enough else []
            yield from deque(chain(lines, self._of(source)), maxlen=count)

    def rest(self) -> Iterator[LogLine]:
        """Yield incomplete last lines."""
        for source in tuple(self._begun):
            yield LogLine(_name_to_show(source), self._begun.pop(source))

    def _sources(self, attempt: int) -> list[str]:
        """Return the outputs of attempts, oldest first, then the logs of the run."""
        outputs = [output_of(number) for number in range(1, attempt + 1)]
        if self._source is None:
            return outputs
        if self._source == OUTPUT:  # the newest, and those of later attempts
            return outputs[max((self._first_attempt or 1) - 1, 0) :]
        every = [*outputs, *_of_run(self._connection.get(self._path, LogSources))]
        if self._source == ALL:
            return every
        if self._source not in every and len(every) > len(outputs) and not _LATER.match(self._source):
            known = (OUTPUT, *every)
            hint = did_you_mean(self._source, known) or f": there are {', '.join(known)}"
            raise InputError(f"the job has no log {self._source!r}{hint}")
        return [self._source] if self._source in every else []

    def _of(self, source: str) -> Iterator[LogLine]:
        """Yield the lines of one log that were not read yet."""
        while source not in self._ended:
            after = self._next.get(source, 0)
            yield from self._lines(source, self._part(source, {"after": after}))
            if self._next[source] <= after:
                return

    def _part(self, source: str, where: Params) -> LogPart:
        return self._connection.get(f"{self._path}/{quote(source, safe='')}", LogPart, where)

    def _lines(self, source: str, part: LogPart) -> list[LogLine]:
        """Return the lines that a part ends."""
        self._next[source] = part.next
        *lines, begun = (self._begun.pop(source, "") + part.text).split("\n")
        if part.ended:
            self._ended.add(source)
        if begun and part.ended:
            lines.append(begun)
        elif begun:
            self._begun[source] = begun
        return [LogLine(_name_to_show(source), line.rstrip("\r")) for line in lines]


def _name_to_show(source: str) -> str:
    """Return the name to show. Most jobs have one attempt only, whose number is left out."""
    return OUTPUT if source == output_of(1) else source


def follow_lines(reader: LogReader, look: Callable[[], JobView]) -> Iterator[LogLine]:
    """Yield lines until the job has ended, across its attempts. `look`: returns the current state of the job."""
    pause_s = FIRST_PAUSE_S
    while True:
        view, got = look(), False  # before the logs, so that everything that an ended job has written is read
        for line in reader.new(view.attempt):
            got = True
            yield line
        if view.state in ENDED:
            yield from reader.rest()
            return
        pause_s = FIRST_PAUSE_S if got else min(pause_s * 1.5, LONGEST_PAUSE_S)
        time.sleep(pause_s)


def _of_run(response: LogSources) -> tuple[str, ...]:
    return tuple(one for one in response.sources if not _ATTEMPT.match(one))


def run_logs(connection: Connection, job: JobView) -> tuple[tuple[str, ...], str | None]:
    """Return the logs of the job's run (`driver`, `rank-0`, ...), and the log of the rank that made the job fail.

    A command has no logs. The second value is None if the job has not failed, or if the rank is unknown: the server
    does not name it, and not exactly one rank has a log.
    """
    response = connection.get(f"{job_path(job.job_id)}/logs", LogSources)
    logs = _of_run(response)
    if job.state is not State.FAILED:
        return logs, None
    ranks = [name for name in logs if name.startswith("rank-")]
    return logs, response.failed or (ranks[0] if len(ranks) == 1 else None)


def last_lines(connection: Connection, job: JobView, source: str, count: int = TAIL_LINES) -> list[LogLine]:
    """Return the last lines of one log. Raises InputError: the job has no such log."""
    reader = LogReader(connection, job.job_id, source)
    return list(deque(chain(reader.last(job.attempt, count), reader.rest()), maxlen=count))


def log_of_end(connection: Connection, job: JobView, lines: int = TAIL_LINES) -> tuple[str, str]:
    """Return the log that says most about the job's end, and its last lines; empty texts if nothing was written.

    The driver of a run prints how it ended, and so does a command, whose ranks share one output.
    """
    for source in (OUTPUT, "driver", rank_name(0)):
        try:
            last = last_lines(connection, job, source, lines)
        except InputError:
            continue
        if text := "\n".join(line.text for line in last).strip("\n"):
            return source, text
    return "", ""
