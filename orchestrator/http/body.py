"""Request bodies: JSON, read once and strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import to_thread
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_LARGE = 1 << 18  # bytes; larger bodies are parsed in a thread, so that other requests are not held up


class StrictRequest(Request):
    async def json(self) -> Any:
        """Parse the body. NaN, lone surrogates and more than 200 levels are refused. Raises JSONDecodeError."""
        body = await self.body()
        return await to_thread.run_sync(read_json, body) if len(body) > _LARGE else read_json(body)


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method in ("POST", "PUT") and self.body_field is not None:
                _check_type(request)
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


def read_json(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise json.JSONDecodeError(str(error)[:200], "", 0) from None


def _check_type(request: Request) -> None:
    """Require a JSON content type: a page of another site may send other types without a preflight request."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json" and not (given.startswith("application/") and given.endswith("+json")):
        raise HTTPException(415, "the body must be JSON, and say so: Content-Type: application/json")
