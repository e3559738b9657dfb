"""The logs of one job, line by line, as they grow."""

from __future__ import annotations

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
# Where an error is told best, the best first.
_TELLING: Final = ("driver", "rank-0", OUTPUT)


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
        self._attempt: int | None = None

    def sources(self) -> tuple[str, ...]:
        """
        Raises:
            InputError: the one that is asked for is none of them, and others are there.
        """
        found = self._connection.get(self._path, LogSources).sources
        if self._source is None:
            return found
        if found and self._source not in found and not self._source.startswith("rank-"):
            hint = did_you_mean(self._source, found) or f": there are {', '.join(found)}"
            raise InputError(f"the job has no log {self._source!r}{hint}")
        return (self._source,) if self._source in found else ()

    def new(self, attempt: int) -> Iterator[LogLine]:
        """What is there and was not given yet. `attempt`: the job's newest."""
        if self._attempt is not None and attempt != self._attempt:
            yield from self._ends(OUTPUT)
            self._next.pop(OUTPUT, None)
        self._attempt = attempt
        for source in self.sources():
            yield from self._of(source)

    def rest(self) -> Iterator[LogLine]:
        """Lines whose ends have not come."""
        for source in tuple(self._begun):
            yield from self._ends(source)

    def _of(self, source: str) -> Iterator[LogLine]:
        while True:
            after = self._next.get(source, 0)
            part = self._connection.get(f"{self._path}/{quote(source, safe='')}", LogPart, {"after": after})
            self._next[source] = part.next
            *lines, begun = (self._begun.pop(source, "") + part.text).split("\n")
            if begun:
                self._begun[source] = begun
            yield from (LogLine(source, line.rstrip("\r")) for line in lines)
            if part.next <= after:
                return

    def _ends(self, source: str) -> Iterator[LogLine]:
        if begun := self._begun.pop(source, ""):
            yield LogLine(source, begun)


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


def telling_end(connection: Connection, job_id: str, lines: int = TAIL_LINES) -> tuple[str, str]:
    """The log that tells most of an end, and its last lines; two empty texts where nothing was written."""
    found = LogReader(connection, job_id).sources()
    order = [*(one for one in _TELLING if one in found), *(one for one in found if one not in _TELLING)]
    for source in order:
        reader = LogReader(connection, job_id, source)
        last = deque((line.text for line in reader.new(0)), maxlen=lines)
        last.extend(line.text for line in reader.rest())
        if text := "\n".join(last).strip("\n"):
            return source, text
    return "", ""
