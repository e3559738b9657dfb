"""The logs of one job, line by line, as they grow."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from cluster.text import did_you_mean
from jobs.errors import InputError
from orchestrator.api import JobView, LogPart, LogSources
from orchestrator.client.connection import Connection
from orchestrator.client.lookup import job_path
from orchestrator.queue.states import ENDED, State

OUTPUT: Final = "output"  # of the newest attempt: it begins anew with each
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 1.0
ALL: Final = "all"  # asked for as a source: every log
TAIL_LINES: Final = 20
_ATTEMPT = re.compile(rf"^{OUTPUT}(-[0-9]+)?$")
_LATER = re.compile(rf"^(rank-[0-9]+|{OUTPUT}-[0-9]+)$")  # may still come


@dataclass(frozen=True)
class LogLine:
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source} | {self.text}"


class LogReader:
    """Gives each line once.

    Args:
        source: only that log. None: what the job's attempts have printed. ALL: the logs of its run as well, one after
            another, because most of their lines carry no time. Logs that come later are included.
    """

    def __init__(self, connection: Connection, job_id: str, source: str | None = None) -> None:
        self._connection, self._source = connection, source
        self._path = f"/v1/jobs/{quote(job_id, safe='')}/logs"
        self._next: dict[str, int] = {}
        self._begun: dict[str, str] = {}  # lines without an end so far
        self._ended: set[str] = set()
        self._first_attempt: int | None = None

    def new(self, attempt: int) -> Iterator[LogLine]:
        """What is there and was not given yet. `attempt`: the job's newest.

        Raises:
            InputError: it has logs, and not the one that is asked for.
        """
        if self._first_attempt is None:
            self._first_attempt = attempt
        for source in self._sources(attempt):
            if source not in self._ended:
                yield from self._of(source)

    def rest(self) -> Iterator[LogLine]:
        """Lines whose ends have not come."""
        for source in tuple(self._begun):
            yield LogLine(_shown(source), self._begun.pop(source))

    def _sources(self, attempt: int) -> list[str]:
        """The outputs of attempts by their numbers, oldest first, then the logs of the run."""
        outputs = [f"{OUTPUT}-{number}" for number in range(1, attempt + 1)]
        if self._source is None:
            return outputs
        if self._source == OUTPUT:  # the newest, and those that come later
            return outputs[max((self._first_attempt or 1) - 1, 0) :]
        every = [*outputs, *_of_run(self._connection, self._path)]
        if self._source == ALL:
            return every
        if self._source not in every and len(every) > len(outputs) and not _LATER.match(self._source):
            known = (OUTPUT, *every)
            hint = did_you_mean(self._source, known) or f": there are {', '.join(known)}"
            raise InputError(f"the job has no log {self._source!r}{hint}")
        return [self._source] if self._source in every else []

    def _of(self, source: str) -> Iterator[LogLine]:
        while True:
            after = self._next.get(source, 0)
            part = self._connection.get(f"{self._path}/{quote(source, safe='')}", LogPart, {"after": after})
            self._next[source] = part.next
            *lines, begun = (self._begun.pop(source, "") + part.text).split("\n")
            if begun:
                self._begun[source] = begun
            yield from (LogLine(_shown(source), line.rstrip("\r")) for line in lines)
            if part.ended:
                self._ended.add(source)
            if part.ended or part.next <= after:
                return


def _shown(source: str) -> str:
    """Most jobs have one attempt only."""
    return OUTPUT if source == f"{OUTPUT}-1" else source


def followed(reader: LogReader, look: Callable[[], JobView]) -> Iterator[LogLine]:
    """Lines until the job has ended, across its attempts. `look`: the job as it is now."""
    pause_s = FIRST_PAUSE_S
    while True:
        view, got = look(), False  # before the logs: what a job has written by its end is read
        for line in reader.new(view.attempt):
            got = True
            yield line
        if view.state in ENDED:
            yield from reader.rest()
            return
        pause_s = FIRST_PAUSE_S if got else min(pause_s * 1.5, LONGEST_PAUSE_S)
        time.sleep(pause_s)


def _of_run(connection: Connection, path: str) -> tuple[str, ...]:
    return tuple(one for one in connection.get(path, LogSources).sources if not _ATTEMPT.match(one))


def run_logs(connection: Connection, job: JobView) -> tuple[tuple[str, ...], str | None]:
    """The logs of the job's run, `driver`, `rank-0`, ..., and the one of the rank that made the job fail.

    A command has none. The rank is not known where several have logs and the server names none.
    """
    told = connection.get(f"{job_path(job.job_id)}/logs", LogSources)
    logs = tuple(one for one in told.sources if not _ATTEMPT.match(one))
    ranks = [name for name in logs if name.startswith("rank-")]
    if job.state is not State.FAILED:
        return logs, None
    return logs, told.failed or (ranks[0] if len(ranks) == 1 else None)


def last_lines(connection: Connection, job: JobView, source: str, count: int = TAIL_LINES) -> list[LogLine]:
    """The last lines of one log. Raises InputError: the job has no such log."""
    reader = LogReader(connection, job.job_id, source)
    last = deque(reader.new(job.attempt), maxlen=count)
    last.extend(reader.rest())
    return list(last)


def telling_end(connection: Connection, job: JobView, lines: int = TAIL_LINES) -> tuple[str, str]:
    """The log that tells most of an end, and its last lines; two empty texts where nothing was written.

    A run's driver says in its output how it ended; so does a command, whose ranks all write there.
    """
    for source in (OUTPUT, "driver", "rank-0"):
        try:
            last = last_lines(connection, job, source, lines)
        except InputError:
            continue
        if text := "\n".join(line.text for line in last).strip("\n"):
            return source, text
    return "", ""
