"""What every request passes before its body is read: who asks, and how large it is. After it: what is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

import anyio
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import FleetuneError
from orchestrator.api import MOST_BYTES
from orchestrator.server.auth import Tokens, bearer, check_at_home
from orchestrator.server.metrics import Meters
from orchestrator.server.problems import TOLD, answer_to, route_of, unexpected
from orchestrator.server.scrub import Scrubber

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})  # without a token
DRIVER = "/v1/driver/"  # with the token of an attempt, which the route checks
MOST_BYTES_OF_DRIVER = 4 << 20
CALLER = "fleetune.caller"

Asked = MutableMapping[str, Any]


class Gate:
    """Stands before the app. Whatever happens inside, something readable is answered."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        scrub: Scrubber,
        meters: Meters,
        say: Callable[[str], None],
        check_peer: Callable[[Scope], None],
    ) -> None:
        """`check_peer`: raises where nobody shows a token and the program at the other end may not ask without one."""
        self._app, self._tokens, self._scrub, self._meters, self._say = app, tokens, scrub, meters, say
        self._check_peer = check_peer
        self._reading = anyio.CapacityLimiter(4)  # threads of its own: who asks is known also when others wait

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            refused = await self._pass(scope, receive, sending)
            if refused is not None and not status:
                await refused(scope, receive, sending)
        finally:
            self._meters.asked(scope["method"], route_of(scope), status or 500, time.perf_counter() - began_s)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """What is answered instead."""
        try:
            headers = Headers(scope=scope)
            await self._let_in(scope, headers)
            most = MOST_BYTES_OF_DRIVER if scope["path"].startswith(DRIVER) else MOST_BYTES
            check_length(headers, most)
            await self._app(scope, limited(receive, most), send)
        except FleetuneError as error:
            return answer_to(error, self._scrub)
        except Exception as error:
            return None if TOLD in scope else unexpected(scope, error, self._say)
        return None

    async def _let_in(self, scope: Scope, headers: Headers) -> None:
        """Raises NoToken, Forbidden or StoreBroken."""
        path = scope["path"]
        if path in OPEN or path.startswith(DRIVER):
            return
        if not self._tokens.fresh:
            await to_thread.run_sync(self._tokens.read, limiter=self._reading)
        if not self._tokens.needed:
            check_at_home(headers)
            self._check_peer(scope)
        scope[CALLER] = self._tokens.caller(bearer(headers))


class TooLarge(FleetuneError):
    status = 413


def check_length(headers: Headers, most: int) -> None:
    """What the body is said to have; `limited` counts what it has. Raises TooLarge."""
    said = headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > most:
        raise _too_large(most)


def limited(receive: Receive, most: int) -> Receive:
    got = 0

    async def receiving() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, str(_too_large(most)))  # one that passes through FastAPI
        return message

    return receiving


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"a body may have {most:,} bytes here: send less at once")
