"""Turns errors into answers: `Problem` and a status."""

from __future__ import annotations

import math
import secrets
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import BackendUnreachable, FleetuneError, InputError, Mistake, StorageOutage
from jobs.spec.checking.mistakes import must_be, shown
from orchestrator.problem import Problem, ProblemItem
from orchestrator.queue.errors import NotLeader, StoreBroken, UnknownJob
from orchestrator.service.observability.scrub import Scrubber

TOLD = "fleetune.told"  # key in the scope: the error was logged already
_AGAIN_S = 2
_MOST_SHOWN = 10
_SAID: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "there is no such key: GET /openapi.json lists the keys",
}
_MUST_BE: Mapping[str, str] = {  # in addition to those for specs
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_pattern_mismatch": "text of the form {pattern}",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object with keys",
    "mapping_type": "an object with keys",
    "model_type": "an object with keys",
    "model_attributes_type": "an object with keys",
}
_PASSING = (NotLeader, StoreBroken, BackendUnreachable, StorageOutage)  # the same request may succeed later
_NAMES: Mapping[int, str] = {400: "BadRequest", 404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}


class TooMany(FleetuneError):
    """Too many requests for a slow resource at once."""

    status = 429


def status_of(error: FleetuneError) -> int:
    given = getattr(error, "status", None)
    if isinstance(given, int):
        return given
    if isinstance(error, _PASSING):
        return 503
    return 400 if isinstance(error, InputError) else 500


def answer(
    error: str,
    message: str,
    status: int,
    headers: Mapping[str, str] | None = None,
    queue: str = "",
    items: tuple[ProblemItem, ...] = (),
    meant: tuple[str, ...] = (),
) -> Response:
    more = dict(headers or {})
    if status in (429, 503):
        more.setdefault("Retry-After", str(_AGAIN_S))
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    body = Problem(error=error, message=message, queue=queue, items=items, meant=meant).model_dump_json()
    return Response(body, status, more, media_type="application/json")


def answer_to(error: FleetuneError, scrub: Scrubber, queue: str = "") -> Response:
    wait_s = getattr(error, "retry_after_s", None)
    headers = None if wait_s is None else {"Retry-After": str(math.ceil(wait_s))}
    items = _items(error, scrub) if isinstance(error, InputError) else ()
    meant = error.meant if isinstance(error, UnknownJob) else ()
    return answer(type(error).__name__, scrub.line(str(error)), status_of(error), headers, queue, items, meant)


def _items(error: InputError, scrub: Scrubber) -> tuple[ProblemItem, ...]:
    """Return the mistakes; empty if none of them names a field or a spec, because then the message says all."""
    if not any(one.field or one.spec for one in error.mistakes):
        return ()
    return tuple(
        ProblemItem(spec=one.spec, field=scrub.line(one.field), message=scrub.line(one.message))
        for one in error.mistakes
    )


def handle(app: FastAPI, scrub: Scrubber, say: Callable[[str], None], queue: str = "") -> None:
    """Register handlers that answer all errors of an app.

    Args:
        say: reports internal errors with their tracebacks.
        queue: id of the queue. Drivers ignore problems that do not name their queue.
    """

    @app.exception_handler(FleetuneError)
    async def known(_: Request, error: FleetuneError) -> Response:
        if status_of(error) >= 500 and not isinstance(error, _PASSING):
            say(f"{type(error).__name__}: {error}")
        return answer_to(error, scrub, queue)

    @app.exception_handler(RequestValidationError)
    async def shape(_: Request, error: RequestValidationError) -> Response:
        wrong = shape_error(error.errors())
        return answer("WrongShape", scrub.line(str(wrong)), 422, queue=queue, items=_items(wrong, scrub))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        name = _NAMES.get(error.status_code, "HTTPError")
        return answer(name, scrub.line(_http_message(error)), error.status_code, error.headers, queue)

    @app.exception_handler(Exception)  # Starlette raises it again afterwards
    async def fault(request: Request, error: Exception) -> Response:
        return unexpected(request.scope, error, say)


def unexpected(scope: MutableMapping[str, Any], error: Exception, say: Callable[[str], None]) -> Response:
    """Answer an internal error. The details go to the server's log only."""
    number = secrets.token_hex(4)
    scope[TOLD] = True
    say(f"error {number} of {scope.get('method')} {route_of(scope)}:\n{''.join(traceback.format_exception(error))}")
    return answer("ServerError", f"the server has failed; its log says more: look there for {number}", 500)


def route_of(scope: Mapping[str, Any]) -> str:
    """Return the path of a route as declared, so that metrics have few different labels."""
    return str(getattr(scope.get("route"), "path", "(none)"))


def shape_error(errors: Sequence[Any]) -> InputError:
    """Make an error that says where each mistake is, what is allowed and what was given.

    A text in a body may be a secret, so only its length is given.
    """
    mistakes = [_mistake(error) for error in errors[:_MOST_SHOWN]]
    if len(errors) > _MOST_SHOWN:
        mistakes.append(Mistake(f"and {len(errors) - _MOST_SHOWN} more"))
    return InputError.of(mistakes)


def _mistake(error: Any) -> Mistake:
    if error["type"] == "json_invalid":
        return Mistake(f"the body is no JSON: {error['ctx']['error']}")
    return Mistake(_wrong(str(error["type"]), error.get("ctx") or {}, error), _place(error["loc"]))


def _wrong(mistake: str, context: Mapping[str, Any], error: Any) -> str:
    if mistake in _SAID:
        return _SAID[mistake]
    allowed = must_be(mistake, context) or _MUST_BE.get(mistake, "").format(**context)
    if not allowed or "input" not in error:  # a message of our own validators is complete
        return _lower(str(error["msg"]))
    given = _given(error["input"], error["loc"])
    return f"must be {allowed}{f', but is {given}' if given else ''}"


def _given(value: Any, place: Sequence[int | str]) -> str:
    """Describe a value without revealing texts of the body."""
    if isinstance(value, str) and place[:1] == ("body",):
        return f"a text of {len(value):,} characters" if value else "empty"
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,}"
    if isinstance(value, str | bool | int | float) or value is None:
        return shown(value, "")
    return "an object" if isinstance(value, Mapping) else ""


def _place(place: Sequence[int | str]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) and text else f"{'.' if text else ''}{str(part)[:100]}"
    return text or "the body"


def _lower(message: str) -> str:
    """Return Pydantic's message in lower case, shortened."""
    head = message.removeprefix("Value error, ")
    return head[:1].lower() + head[1:300]


def _http_message(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is nothing at this path: GET /openapi.json lists the paths"
    if error.status_code == 405:
        return "this path takes other methods: GET /openapi.json lists them"
    return str(error.detail)
