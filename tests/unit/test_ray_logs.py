"""A log that is followed through Ray's dashboard is read once, however many parts it is asked for in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cluster.backend import MAX_OUTPUT_BYTES
from cluster.ray_logs import OpenLogs, ProgramLog

LINE = b"Running entrypoint for job a: x\n"
HEAD = LINE + b"\x1e\n"
PART = 256 << 10


@dataclass
class Dashboard:
    """Serves one log, and counts what it has sent. A stream waits for more, as Ray's does."""

    content: bytearray
    ended: bool = False
    sent: int = 0
    opened: int = 0
    fails: bool = False
    grown: threading.Condition = field(default_factory=threading.Condition)

    def log(self) -> ProgramLog:
        return ProgramLog("a", LINE, self.ended, self._open)

    def _open(self, follow: bool) -> Response:
        self.opened += 1
        return Response(self, follow)

    def write(self, more: bytes) -> None:
        with self.grown:
            self.content += more
            self.grown.notify_all()


class Response:
    def __init__(self, dashboard: Dashboard, follow: bool) -> None:
        self._dashboard, self._follow, self.closed = dashboard, follow, threading.Event()
        self.raw = self

    def iter_content(self, size: int) -> Iterator[bytes]:
        at, board = 0, self._dashboard
        while not self.closed.is_set():
            if board.fails and at:
                raise ConnectionError("reset")
            chunk = bytes(board.content[at : at + size])
            if not chunk and not self._follow:
                return
            if not chunk:
                with board.grown:
                    board.grown.wait_for(lambda at=at: len(board.content) > at or self.closed.is_set(), 10.0)
                continue
            at += len(chunk)
            board.sent += len(chunk)
            yield chunk

    def shutdown(self) -> None:
        self.closed.set()
        with self._dashboard.grown:
            self._dashboard.grown.notify_all()

    close = shutdown


@pytest.fixture
def logs() -> Iterator[OpenLogs]:
    made = OpenLogs()
    yield made
    made.close()


def followed(logs: OpenLogs, board: Dashboard, after: int, until: int) -> bytes:
    """As `fleetune logs -f` asks: up to 256 KiB at once, and again from where that ended."""
    found, asked = bytearray(), 0
    while after + len(found) < until:
        found += logs.read(board.log(), after + len(found))[:PART]
        asked += 1
        assert asked < 10_000
    return bytes(found)


@pytest.mark.parametrize("ended", [True, False])
def test_a_long_log_costs_no_more_than_its_length(logs: OpenLogs, ended: bool) -> None:
    text = b"".join(b"line %07d\n" % number for number in range(700_000))  # 9 MB, of which 160 MB were read before
    board = Dashboard(bytearray(HEAD + text), ended)
    assert followed(logs, board, 0, len(text)) == text
    assert board.opened == 1 and board.sent == len(board.content)


def test_a_log_that_grows_is_read_once_and_once_more_at_its_end(logs: OpenLogs) -> None:
    board, text = Dashboard(bytearray(HEAD)), b""
    for number in range(5):
        more = b"%d" % number * 600_000
        board.write(more)
        assert followed(logs, board, len(text), len(text) + len(more)) == more
        text += more
    assert board.opened == 1
    board.write(b"the end")
    board.ended = True
    assert logs.read(board.log(), len(text)) == b"the end"
    assert board.opened == 2 and board.sent <= 2 * len(board.content)


def test_readers_at_other_places_and_answers_that_were_lost_get_what_they_ask_for(logs: OpenLogs) -> None:
    text = bytes(range(256)) * 20_000
    board = Dashboard(bytearray(HEAD + text), ended=True)
    for after in (0, 0, 3_000_000, 1_000_000, 3_000_000, 3_000_001, len(text), 10**12, 5):
        assert logs.read(board.log(), after) == text[after : after + MAX_OUTPUT_BYTES]


def test_a_stream_that_breaks_is_opened_again(logs: OpenLogs) -> None:
    text = b"x" * 3_000_000
    board = Dashboard(bytearray(HEAD + text), ended=True)
    first = logs.read(board.log(), 0)
    board.fails = True
    with pytest.raises(OSError, match="reset"):
        logs.read(board.log(), len(first))
    board.fails = False
    assert followed(logs, board, len(first), len(text)) == text[len(first) :]


def test_no_more_responses_stay_open_than_allowed() -> None:
    logs = OpenLogs(most=2)
    board = Dashboard(bytearray(HEAD + b"x" * 5_000_000), ended=True)
    for after in (0, 2_000_000, 4_000_000, 1_500_000):
        logs.read(board.log(), after)
    assert len(logs._open) == 2
    logs.close()


def test_of_a_program_without_a_log_there_is_nothing(logs: OpenLogs) -> None:
    assert logs.read(ProgramLog("a", LINE, False, lambda _: None), 0) == b""
