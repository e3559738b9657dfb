"""The end of a log is read without what is before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.api import LogPart, LogSources
from orchestrator.client.log_reader import LogReader, last_lines
from orchestrator.queue.states import State
from tests.support.jobviews import job

PART = 1000
LONG = "".join(f"line {number}\n" for number in range(1000))


@dataclass
class Server:
    """Answers with parts of 1,000 bytes. `is_older`: it does not know `last`."""

    logs: dict[str, str]
    is_older: bool = False
    ended: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)

    def get(self, path: str, kind: Any, where: dict[str, Any] | None = None) -> Any:
        if kind is LogSources:
            return LogSources(sources=tuple(self.logs))
        self.asked.append(dict(where or {}))
        text, after = self.logs[path.rpartition("/")[2]], (where or {}).get("after", 0)
        if (where or {}).get("last") and not self.is_older:
            after = 0 if len(text) <= PART else text.index("\n", len(text) - PART) + 1
        piece = text[after : after + PART]
        ended = self.ended and after + len(piece) == len(text)
        return LogPart(text=piece, next=after + len(piece), ended=ended, begin=None if self.is_older else after)


def texts(lines: Any) -> list[str]:
    return [line.text for line in lines]


@pytest.mark.parametrize("count", [0, 1, 5, 111, 112, 500, 2000])
@pytest.mark.parametrize("is_older", [False, True])
def test_the_last_lines_are_those_of_the_whole_log(count: int, is_older: bool) -> None:
    server = Server({"output": LONG, "output-1": LONG}, is_older)
    view = job("a-1", State.FAILED, attempt=1)
    expected = LONG.splitlines()[-count:] if count else []
    assert texts(last_lines(server, view, "output-1", count)) == expected  # type: ignore[arg-type]
    assert (len(server.asked) == 1) == (count < 112 and not is_older)


def test_a_reader_goes_on_behind_the_last_lines() -> None:
    server = Server({"output-1": LONG + "begun"}, ended=False)
    reader = LogReader(server, "a-1")  # type: ignore[arg-type]
    assert texts(reader.last(1, 2)) == ["line 998", "line 999"]
    server.logs["output-1"] += " and over\nmore\n"
    server.logs["output-2"] = "again"
    server.ended = True
    assert texts(reader.new(2)) == ["begun and over", "more", "again"]
    assert texts(reader.new(2)) == texts(reader.rest()) == []
