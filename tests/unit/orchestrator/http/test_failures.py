"""Requests without a valid token: refused before anything is read of them, and counted by address."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.http.auth import MOST, WINDOW_S, Failures, Tokens, TooManyFailures, address_of
from orchestrator.http.gate import MOST_BYTES_ELSEWHERE, MOST_BYTES_OF_DRIVER, Gate
from orchestrator.http.metrics import Meters
from orchestrator.queue.records import Role
from orchestrator.service import tokens as tokenrules
from orchestrator.service.context.identity import DriverKey, attempt_token, signature_of
from orchestrator.service.observability.scrub import Scrubber
from orchestrator.store import open_store


def scope(address: str | None = "10.0.0.7") -> dict[str, Any]:
    return {"client": None if address is None else (address, 4711)}


def test_an_address_that_fails_again_and_again_is_not_looked_at_for_a_while() -> None:
    now = [0.0]
    failures = Failures(lambda: now[0])
    for _ in range(MOST):
        failures.check(scope())
        failures.note(scope())
    with pytest.raises(TooManyFailures, match=r"30 requests from 10\.0\.0\.7 .* Try again in 60 s") as caught:
        failures.check(scope())
    assert caught.value.retry_after_s == WINDOW_S
    failures.check(scope("10.0.0.8"))
    now[0] = WINDOW_S + 1
    failures.check(scope())
    failures.note(scope())
    failures.check(scope())


def test_no_more_addresses_are_kept_than_fit() -> None:
    failures = Failures(lambda: 0.0)
    for number in range(30_000):
        failures.note(scope(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
    assert len(failures._windows) == 10_000


@pytest.mark.parametrize(
    ("client", "address"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1%eth0", "2001:db8::/64"),
        (None, "an unknown address"),
        ("/run/socket", "/run/socket"),
    ],
)
def test_a_host_cannot_hide_behind_its_many_addresses(client: str | None, address: str) -> None:
    assert address_of(scope(client)) == address


@dataclass
class Asked:
    """A gate before an app that answers 200, on a store with one token; `read`: bytes that were read of bodies."""

    gate: Gate
    token: str
    key: str
    reached: list[str]
    read: list[int] = field(default_factory=list)

    def __call__(self, path: str, token: str | None = None, body: bytes = b"", address: str = "10.0.0.7") -> Any:
        headers = [(b"host", b"localhost")] + (
            [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        )
        asked = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": (address, 1)}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            self.read.append(len(body))
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.gate(asked, receive, send))
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, sent[1]["body"]


@pytest.fixture
def asked() -> Any:
    store, reached = open_store("sqlite://"), list[str]()
    token = tokenrules.add(store, "root", Role.ADMIN, None, time.time(), "test")

    async def app(given: Any, receive: Any, send: Any) -> None:
        reached.append(given["path"])
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    key = DriverKey(store)
    gate = Gate(app, Tokens(store), Scrubber(), Meters(), print, lambda scope: None, key.knows)
    yield Asked(gate, token, key.value(), reached)
    store.close()


def test_wrong_tokens_are_refused_and_a_right_one_is_taken_also_after_many(asked: Asked) -> None:
    for _ in range(MOST):
        assert asked("/v1/jobs", "ft_wrong", b"x" * 1000)[0] == 401
    status, headers, body = asked("/v1/jobs", None, b"x" * 1000)
    assert (status, json.loads(body)["error"]) == (429, "TooManyFailures")
    assert 1 <= int(headers["retry-after"]) <= WINDOW_S
    assert asked.reached == [] and asked.read == []
    for address in ("10.0.0.7", "127.0.0.1"):
        assert asked("/v1/jobs", asked.token, address=address)[0] == 200
    assert asked("/v1/jobs", "ft_wrong", address="10.0.0.8")[0] == 401


def test_a_drivers_body_is_read_only_with_the_token_of_an_attempt(asked: Asked) -> None:
    right = attempt_token(asked.key, "job-abc", 3)
    three = b"[" + b"0," * (3 << 19) + b"0]"
    wrong = (None, "x.y", right[:-1] + ("0" if right[-1] != "0" else "1"), attempt_token(asked.key + "x", "job-abc", 3))
    began_s = time.thread_time()
    for token in (*wrong, right.replace("abc-3", "abc-4")):
        assert asked("/v1/driver/beat", token, three)[0] == 401
    assert time.thread_time() - began_s < 0.5
    assert asked.read == [] and asked.reached == []
    assert asked("/v1/driver/beat", right)[0] == 200
    old = signature_of(right)  # of a driver that an older release has started
    assert asked("/v1/driver/beat", old)[0] == 200


def test_bodies_are_no_larger_than_their_routes_need(asked: Asked) -> None:
    right = attempt_token(asked.key, "job-abc", 3)
    assert asked.gate is not None
    for path, token, most in (
        ("/v1/driver/beat", right, MOST_BYTES_OF_DRIVER),
        ("/v1/tokens", asked.token, MOST_BYTES_ELSEWHERE),
    ):
        assert asked(path, token, b"x" * most)[0] == 200
        assert asked(path, token, b"x" * (most + 1))[0] in (413, 500)
