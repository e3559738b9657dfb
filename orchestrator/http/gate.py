"""The gate that every request passes: it checks the caller and the size before the body is read. Counts requests."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import FleetuneError
from orchestrator.api import MOST_BYTES
from orchestrator.http.auth import Failures, NoToken, Tokens, bearer, check_at_home
from orchestrator.http.errors import TOLD, answer_to, route_of, unexpected
from orchestrator.http.metrics import Meters
from orchestrator.service.context.caller import ANYBODY
from orchestrator.service.observability.scrub import Scrubber

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})  # paths without a token
DRIVER = "/v1/driver/"  # paths with the token of an attempt
LARGE = frozenset({"/v1/jobs", "/v1/guest/join"})  # paths whose bodies are specs
MOST_BYTES_OF_DRIVER = 256 << 10
MOST_BYTES_ELSEWHERE = 1 << 20
CALLER = "fleetune.caller"


class Gate:
    """Middleware around the app. Every error is answered with a readable problem."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        scrub: Scrubber,
        meters: Meters,
        say: Callable[[str], None],
        check_peer: Callable[[Scope], None],
        knows_driver: Callable[[str], bool | None],
    ) -> None:
        """
        Args:
            check_peer: raises if a peer without a token may not use a server without tokens.
            knows_driver: whether a token belongs to an attempt (`DriverKey.knows`).
        """
        self._app, self._tokens, self._scrub, self._meters, self._say = app, tokens, scrub, meters, say
        self._check_peer, self._knows_driver = check_peer, knows_driver
        self._failures = Failures()
        self._reading = anyio.CapacityLimiter(4)  # separate threads: authentication works when the others are busy

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
            if status == 401:
                self._failures.note(scope)
        finally:
            self._meters.asked(scope["method"], route_of(scope), status or 500, time.perf_counter() - began_s)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Handle a request. Returns a response if the app did not send one."""
        try:
            headers = Headers(scope=scope)
            try:
                await self._let_in(scope, headers)
            except NoToken:
                self._failures.check(scope)
                raise
            most = most_bytes(scope["path"])
            check_length(headers, most)
            await self._app(scope, limited(receive, most), send)
        except FleetuneError as error:
            return answer_to(error, self._scrub)
        except Exception as error:
            return None if TOLD in scope else unexpected(scope, error, self._say)
        return None

    async def _let_in(self, scope: Scope, headers: Headers) -> None:
        """Authenticate a request. Raises NoToken, Forbidden or StoreBroken."""
        path = scope["path"]
        if path in OPEN:
            return
        if path.startswith(DRIVER):
            await self._let_driver_in(scope, headers)
            return
        if not self._tokens.fresh:
            await to_thread.run_sync(self._tokens.read, limiter=self._reading)
        caller = self._tokens.caller(bearer(headers))
        if caller is ANYBODY:
            check_at_home(headers)
            self._check_peer(scope)
        scope[CALLER] = caller

    async def _let_driver_in(self, scope: Scope, headers: Headers) -> None:
        """Check that a token belongs to some attempt; routes check which. Raises NoToken or StoreBroken."""
        shown = bearer(headers)
        if shown is None:
            raise NoToken("a driver shows the token of its attempt, from FLEETUNE_DRIVER_TOKEN")
        known = await to_thread.run_sync(self._knows_driver, shown, limiter=self._reading)
        if known is False:
            raise NoToken(
                "this token belongs to no attempt of this queue. A driver shows the FLEETUNE_DRIVER_TOKEN that it was "
                "started with, to a server with the store of its queue"
            )
        if known is None:
            self._failures.check(scope)  # an old token, which can be checked only with the body


class TooLarge(FleetuneError):
    status = 413


def most_bytes(path: str) -> int:
    """Return the most bytes of a body."""
    if path in LARGE:
        return MOST_BYTES
    return MOST_BYTES_OF_DRIVER if path.startswith(DRIVER) else MOST_BYTES_ELSEWHERE


def check_length(headers: Headers, most: int) -> None:
    """Check the declared length of the body; `limited` counts the actual bytes. Raises TooLarge."""
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
            raise HTTPException(413, str(_too_large(most)))  # FastAPI passes this exception on
        return message

    return receiving


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"a body may have {most:,} bytes here: send less at once")
