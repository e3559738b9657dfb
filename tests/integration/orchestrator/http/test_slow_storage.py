"""Submissions that name a path of a file system that hangs: the other routes still answer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.http.app import make_app
from orchestrator.http.auth import Tokens
from orchestrator.http.metrics import Meters
from orchestrator.http.routing import Serving
from orchestrator.queue.records import Role
from orchestrator.service import tokens
from orchestrator.service.observability.explain import Explainer
from orchestrator.service.observability.scrub import Scrubber
from tests.support.service import ServiceWorld, finetune, queue

HANGS = "/hangs/data"
SPEC = finetune(data=HANGS, **queue(tenant="a"))
MANY = 60  # more than the threads that all routes share
ANSWER_S = 60.0


class Mount:
    """A file system that hangs until it is released. `waiting`: calls that hang."""

    def __init__(self, access: Any) -> None:
        self.released, self.waiting = threading.Event(), 0
        self._access = access

    def access(self, path: Any, mode: int, **more: Any) -> bool:
        if path != HANGS:
            return bool(self._access(path, mode, **more))
        self.waiting += 1
        self.released.wait()
        return True


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    made = Mount(os.access)
    monkeypatch.setattr(os, "access", made.access)
    yield made
    made.released.set()


@pytest.fixture
def client() -> Iterator[httpx.AsyncClient]:
    world = ServiceWorld(8)
    context, store = world.context, world.store
    token = tokens.add(store, "root", Role.ADMIN, None, world.clock(), "test")
    serving = Serving(
        context, Tokens(store), Scrubber(), Meters(), Explainer(context), lambda: None, lambda: True, "1.0", "here"
    )
    transport = httpx.ASGITransport(make_app(serving, print))
    yield httpx.AsyncClient(
        transport=transport, base_url="http://server", headers={"Authorization": f"Bearer {token}"}, timeout=ANSWER_S
    )
    world.close()


def join(number: int) -> dict[str, Any]:
    return {"key": str(number), "submission": f"raysubmit_{number}", "environment": "0" * 16, "spec": SPEC}


@pytest.mark.parametrize(("path", "at_once"), [("/v1/jobs", 16), ("/v1/guest/join", 1)])
def test_submissions_that_hang_hold_up_no_other_request(
    client: httpx.AsyncClient, mount: Mount, path: str, at_once: int
) -> None:
    async def ask() -> None:
        bodies = [join(number) if "join" in path else {"specs": [SPEC]} for number in range(MANY)]
        sent = [asyncio.create_task(client.post(path, json=body)) for body in bodies]
        while mount.waiting < at_once:
            await asyncio.sleep(0)
        try:
            for _ in range(20):
                answer = await asyncio.wait_for(client.get("/v1/jobs"), ANSWER_S)
                assert answer.status_code == 200 and answer.json()["jobs"] == []
        finally:
            mount.released.set()
            answers = await asyncio.gather(*sent)
        assert {answer.status_code for answer in answers} == {201}

    asyncio.run(ask())
