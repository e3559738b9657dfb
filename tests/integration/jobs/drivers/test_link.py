"""A driver's link to its server, over real sockets, through everything that may be wrong with the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.settings import DriverPlace
from jobs.drivers.link import link as module
from jobs.drivers.link.call import NotUnderstood
from jobs.drivers.link.link import AttemptOver, HttpLink
from jobs.drivers.link.messages import Instruction, Registered
from tests.support.processes import closed_port, wait_for
from tests.support.wireserver import ATTEMPT, JOB, QUEUE, TOKEN, WireServer, wire_server

RUNS = Registered(
    kind="command", spec={"kind": "command", "command": ["x"]}, placement=(("n1", 1),), engine="local",
    secrets={"KEY": "planted"}, queue=QUEUE,
)  # fmt: skip
EVERY_S = 0.05


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.orders: list[Instruction] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def order(self, order: Instruction, reason: str) -> None:
        self.orders.append(order)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def server() -> Iterator[WireServer]:
    with wire_server(RUNS) as server:
        yield server


def open_link(server: WireServer, told: Told) -> HttpLink:
    link = HttpLink(server.place, told.say)
    assert link.register() == RUNS
    link.start(EVERY_S, told.order)
    return link


def test_a_driver_that_comes_before_its_server_waits_for_it_and_says_so_once(told: Told) -> None:
    got = list[Registered]()
    with closed_port() as port:
        link = HttpLink(DriverPlace(f"http://127.0.0.1:{port}", JOB, ATTEMPT, TOKEN), told.say)
        waiting = threading.Thread(target=lambda: got.append(link.register()), daemon=True)
        waiting.start()
        wait_for(lambda: told.lines, "it says that it waits")
        with wire_server(RUNS, port) as server:
            waiting.join(120)
            assert got == [RUNS] and server.requests[0].job_id == JOB
    assert len(told.lines) == 1 and f"waiting for the server at http://127.0.0.1:{port}" in told.lines[0]


def test_a_driver_whose_nodes_are_taken_away_asks_often_until_it_is_told_to_leave(
    server: WireServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HURRIES_S", 0.05)
    link = HttpLink(server.place, told.say)
    link.register()
    link.start(1000.0, told.order)
    link.tell(draining=("n1",))
    wait_for(lambda: len(server.beats) > 5, "it asks again and again")
    assert server.newest.draining == ("n1",)
    server.order = Instruction.STOP
    wait_for(lambda: told.orders == [Instruction.STOP], "it is told")
    time.sleep(0.2)
    known = len(server.beats)
    time.sleep(0.3)
    assert len(server.beats) == known
    link.close()


def test_beats_carry_the_newest_that_is_known_and_nothing_that_is_no_number(server: WireServer, told: Told) -> None:
    link = open_link(server, told)
    link.tell(step=3, total_steps=9, metrics={"loss": 2.0, "eval_loss": float("nan"), "chain": "ab"})
    link.tell(step=4, metrics={"lr": 0.5}, remaining_s=float("inf"), run="/runs/a")
    wait_for(lambda: server.newest.step == 4, "the beat has come")
    beat = server.newest
    assert (beat.run, beat.total_steps, beat.remaining_s, beat.metrics) == (
        "/runs/a",
        9,
        None,
        {"loss": 2.0, "lr": 0.5},
    )
    link.close()


def test_the_last_beat_is_sent_at_the_end_and_none_after_it(
    server: WireServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAST_BEAT_S", 120.0)
    link = HttpLink(server.place, told.say)
    link.register()
    link.start(1000.0, told.order)
    link.tell(step=7)
    link.close()
    assert [beat.step for beat in server.beats] == [7]
    assert not told.orders


def test_a_run_s_root_is_told_at_once(server: WireServer, told: Told) -> None:
    link = HttpLink(server.place, told.say)
    link.register()
    link.start(1000.0, told.order)
    link.tell(run="/runs/a")
    wait_for(lambda: server.newest.run == "/runs/a", "the root is known")
    link.close()


@pytest.mark.parametrize("way", ["silent", "500", "garbage"])
def test_a_server_that_gives_no_answer_is_told_the_newest_later_and_it_is_said_twice_in_all(
    server: WireServer, told: Told, way: str
) -> None:
    link = open_link(server, told)
    server.wait_for_beats()
    server.silent, server.status = way == "silent", {"500": 500, "garbage": 418}.get(way)
    wait_for(lambda: told.lines, "it is noticed")
    link.tell(step=11)
    time.sleep(EVERY_S * 6)  # several beats are lost
    assert len(told.lines) == 1 and "the job goes on without it" in told.lines[0]
    server.silent, server.status = False, None
    wait_for(lambda: server.newest.step == 11, "the newest has come")
    wait_for(lambda: len(told.lines) == 2, "it is said that it answers again")
    assert "answers again" in told.lines[1] and not told.orders
    link.close()


def test_a_server_that_keeps_connections_open_holds_up_nobody(
    server: WireServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 1000.0)
    link = open_link(server, told)
    server.wait_for_beats()
    server.hangs.set()
    wait_for(lambda: server.held > 0, "a beat gets no answer")
    ended = threading.Event()

    def tell_and_close() -> None:
        link.tell(step=1)
        link.close()
        ended.set()

    threading.Thread(target=tell_and_close, daemon=True).start()
    assert ended.wait(120.0), "it waits for the answer"


def test_an_order_is_heard_once_and_leave_after_stop(server: WireServer, told: Told) -> None:
    link = open_link(server, told)
    server.order = Instruction.STOP
    wait_for(lambda: told.orders == [Instruction.STOP], "the order is heard")
    server.wait_for_beats(3)
    server.order = Instruction.LEAVE
    wait_for(lambda: told.orders == [Instruction.STOP, Instruction.LEAVE], "the next one is heard")
    link.close()


def test_only_the_own_queue_s_word_that_an_attempt_is_over_is_an_order_to_leave(server: WireServer, told: Told) -> None:
    link = open_link(server, told)
    server.error, server.status = "AttemptOver", 410
    wait_for(lambda: told.orders == [Instruction.LEAVE], "it is heard")
    link.close()
    with pytest.raises(AttemptOver, match=f"attempt 1 of job {JOB} is over: the test says 410"):
        HttpLink(server.place, told.say).register()


HTML = b"<html><body><h1>401 Authorization Required</h1></body></html>"
NOT_THE_QUEUE = {
    "a proxy that asks for a password": (401, {"WWW-Authenticate": "Basic"}, HTML),
    "a proxy that has forgotten the way": (410, {}, HTML),
    "a server without the queue's token file": (401, {}, b'{"error": "NoToken", "message": "x", "queue": "a1b2c3d4"}'),
    "a server on another store": (401, {}, b'{"error": "NotYourAttempt", "message": "x", "queue": "ffffffff"}'),
    "another store's word on an attempt": (410, {}, b'{"error": "AttemptOver", "message": "x", "queue": "ffffffff"}'),
    "an older server's word on an attempt": (410, {}, b'{"error": "AttemptOver", "message": "x"}'),
    "another store's order": (200, {}, b'{"version": 1, "order": "leave", "reason": "x", "queue": "ffffffff"}'),
    "a bad request that a proxy sees": (400, {}, HTML),
    "a page of a proxy instead of the server's": (200, {"Content-Type": "text/html"}, HTML),
    "another shape": (422, {}, b'{"detail": "of something else"}'),
    "an empty body": (200, {}, b""),
    "an empty refusal": (410, {}, b""),
    "a redirect": (307, {"Location": "http://127.0.0.1:9/login"}, b""),
}


@pytest.mark.parametrize("page", NOT_THE_QUEUE.values(), ids=NOT_THE_QUEUE.keys())
def test_whatever_else_answers_ends_no_attempt(
    server: WireServer, told: Told, page: tuple[int, dict[str, str], bytes]
) -> None:
    link = open_link(server, told)
    server.page = page
    wait_for(lambda: server.pages >= 3, "it has been answered so several times")
    link.tell(step=11)
    server.page = None
    wait_for(lambda: server.newest.step == 11, "the newest has come")
    assert not told.orders and "the job goes on without it" in told.lines[0]
    link.close()
    server.page, server.pages, got = page, 0, list[Registered]()
    waiting = threading.Thread(target=lambda: got.append(HttpLink(server.place, told.say).register()), daemon=True)
    waiting.start()
    wait_for(lambda: server.pages >= 1, "a driver that comes up is answered so, too")
    server.page = None
    waiting.join(120)
    assert got == [RUNS]


def test_a_driver_finds_the_server_that_took_over(server: WireServer, told: Told) -> None:
    with wire_server(RUNS) as second:
        place = replace(server.place, other_urls=(second.place.url,))
        link = HttpLink(place, told.say)
        assert link.register() == RUNS and not second.requests
        link.start(EVERY_S, told.order)
        server.silent = True
        link.tell(step=5)
        wait_for(lambda: second.newest.step == 5, "the other server is told the newest")
        second.wait_for_beats(2)  # and it stays there
        assert len(told.lines) == 2 and server.place.url in told.lines[0] and not told.orders
        link.close()


def test_a_driver_of_an_older_server_believes_answers_that_name_no_queue(server: WireServer, told: Told) -> None:
    server.queue, old = "", replace(server.place, queue="")
    assert HttpLink(old, told.say).register().kind == RUNS.kind
    server.error, server.status = "AttemptOver", 410
    with pytest.raises(AttemptOver):
        HttpLink(old, told.say).register()


def test_a_server_of_another_release_is_not_waited_for(server: WireServer, told: Told) -> None:
    server.status = 422
    with pytest.raises(NotUnderstood, match="does not understand this program: the test says 422"):
        HttpLink(server.place, told.say).register()


def test_secrets_are_in_no_line_and_no_message(server: WireServer, told: Told) -> None:
    server.raw = {"version": 7, "queue": QUEUE, "secrets": {"KEY": "planted"}, "spec": "planted", "kind": ["planted"]}
    with pytest.raises(NotUnderstood, match="belongs to another release") as caught:
        HttpLink(server.place, told.say).register()
    assert "planted" not in str(caught.value) and TOKEN not in str(caught.value)


def test_what_a_listener_raises_ends_no_job(server: WireServer) -> None:
    def say(line: str) -> None: ...

    def bad(**_: Any) -> None: ...

    link = HttpLink(server.place, say)
    link.register()
    link.start(EVERY_S, lambda order, reason: bad())
    server.order = Instruction.STOP
    server.wait_for_beats(3)
    link.tell(step="nonsense", unknown=object(), metrics={"a": None})
    link.tell(step=5)
    server.wait_for_beats(2)
    link.close()
