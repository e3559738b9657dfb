"""The logs of one job, line by line, as they grow."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from jobs.errors import InputError
from jobs.fields import did_you_mean
from orchestrator.api import JobView, LogPart, LogSources
from orchestrator.connection import Connection
from orchestrator.queue.states import ENDED

OUTPUT: Final = "output"  # of the newest attempt: it begins anew with each
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 1.0
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
        source: only that log; None: all of them, also those that come later.
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
        found = self._connection.get(self._path, LogSources).sources
        outputs = [f"{OUTPUT}-{number}" for number in range(1, attempt + 1)]
        every = [*outputs, *(one for one in found if not _ATTEMPT.match(one))]
        if self._source is None:
            return every
        if self._source == OUTPUT:  # the newest, and those that come later
            return outputs[max((self._first_attempt or 1) - 1, 0) :]
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


def telling_end(connection: Connection, job: JobView, lines: int = TAIL_LINES) -> tuple[str, str]:
    """The log that tells most of an end, and its last lines; two empty texts where nothing was written.

    A run's driver says in its output how it ended; so does a command, whose ranks all write there.
    """
    for source in (OUTPUT, "driver", "rank-0"):
        reader = LogReader(connection, job.job_id, source)
        try:
            last = deque((line.text for line in reader.new(job.attempt)), maxlen=lines)
        except InputError:
            continue
        last.extend(line.text for line in reader.rest())
        if text := "\n".join(last).strip("\n"):
            return source, text
    return "", ""
