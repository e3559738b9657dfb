"""What is answered when something inside the server fails, and what its log has of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from cluster.errors import BackendUnreachable, FleetuneError, RunFailed, SpecError, StorageOutage
from orchestrator.http.auth import Tokens
from orchestrator.http.errors import handle
from orchestrator.http.gate import Gate
from orchestrator.http.metrics import Meters
from orchestrator.queue.errors import NotLeader, StoreBroken
from orchestrator.service.observability.scrub import Scrubber
from orchestrator.store import open_store


def ask(fails: Callable[[], Any], within: bool = True) -> tuple[int, dict[str, str], dict[str, str], str]:
    """Status, headers, body and log of a request to an app that fails, in a route or around all of them."""
    log: list[str] = []
    scrub, store = Scrubber(["hunter22"]), open_store("sqlite://")
    routes = FastAPI()

    @routes.get("/fails")
    def route() -> None:
        fails()

    handle(routes, scrub, log.append)

    async def broken(*_: Any) -> None:
        fails()

    app = routes if within else broken
    gate = Gate(app, Tokens(store), scrub, Meters(), log.append, lambda scope: None, lambda token: True)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/fails",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate(scope, receive, send))
    store.close()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"]), "\n".join(log)


def failing(error: Exception) -> Callable[[], Any]:
    def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize("within", [True, False])
def test_a_fault_of_our_own_is_in_the_log_and_not_in_the_answer(within: bool) -> None:
    status, _, body, log = ask(failing(ZeroDivisionError("the inside")), within)
    assert status == 500
    assert body["error"] == "ServerError" and "the inside" not in body["message"]
    number = body["message"].split()[-1]
    assert log.count("Traceback") == 1
    assert number in log and "the inside" in log


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SpecError("hunter22 is no learning rate"), 400),
        (StoreBroken("not now"), 503),
        (NotLeader("not now"), 503),
        (BackendUnreachable("not now"), 503),
        (StorageOutage("not now"), 503),
        (RunFailed("strange"), 500),
    ],
)
def test_what_is_refused_has_its_status_and_its_words(error: FleetuneError, status: int, within: bool) -> None:
    found, headers, body, log = ask(failing(error), within)
    assert found == status
    told = {"error": type(error).__name__, "message": str(error).replace("hunter22", "***")}
    assert body == {**told, "queue": "", "items": [], "meant": []}
    assert ("retry-after" in headers) is (status == 503)
    assert "Traceback" not in log
