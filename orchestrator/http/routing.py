"""What all routes share: their context, their parameters, how bodies are read, and their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orchestrator import api
from orchestrator.http.auth import Tokens
from orchestrator.http.errors import TooMany
from orchestrator.http.gate import CALLER
from orchestrator.http.metrics import Meters
from orchestrator.problem import Problem
from orchestrator.queue.records import Job, UnreadableRow
from orchestrator.queue.store import Store
from orchestrator.service.context.caller import Caller, job_for
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability.explain import Explainer
from orchestrator.service.observability.scrub import Scrubber

Result = TypeVar("Result")

_MOST_SET_ASIDE: Final = 100
_WHAT: Final = {
    400: "It cannot be done.",
    401: "No token, or one that is not known.",
    403: "The token may not do that.",
    404: "There is no such object, or it belongs to another tenant.",
    409: "It is too late or too early for that, or the name is taken.",
    410: "The attempt is over.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON.",
    422: "What was sent has the wrong shape.",
    429: "Too many at once.",
    500: "The server has failed.",
    503: "Store or machines do not answer now.",
}
OF_THE_GATE: Final = (401, 403, 413, 429)  # what `gate` may answer to a request with a user's token, on any route
_LARGE = 1 << 18  # bytes; larger bodies are parsed in a thread, so that other requests are not held up


def documented(model: Any, summary: str, *statuses: int, gate: Sequence[int] = OF_THE_GATE) -> dict[str, Any]:
    """Document a route that needs a token: its answer, and the errors that it may answer with besides the gate's."""
    return {"response_model": model, "summary": summary, "responses": problems(*gate, *statuses)}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document errors of a route: `statuses`, and those of all routes."""
    return {status: {"model": Problem, "description": _WHAT[status]} for status in sorted({*statuses, 500, 503})}


class Slow:
    """A thread pool for calls that wait for storage, so that they do not block the threads of other routes.

    Args:
        what: the calls, for messages.
        threads: number of threads.
        waiting: most calls that wait; further ones are refused.
    """

    def __init__(self, what: str, threads: int, waiting: int = 256) -> None:
        self._what, self._limiter, self._most = what, anyio.CapacityLimiter(threads), waiting

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run a call in the pool. Raises TooMany."""
        if self._limiter.statistics().tasks_waiting >= self._most:
            raise TooMany(f"too many {self._what} at once: try again in a few seconds")
        return await to_thread.run_sync(call, limiter=self._limiter)


@dataclass(frozen=True)
class Serving:
    """The context of the routes.

    Attributes:
        wake: makes the next pass start at once.
        leads: whether this server leads.
        machine: see `api.Server`.
        trouble: returns why the queue makes no progress; '' if it does.
        unanswered: returns why the machines do not answer; '' if they do, or this server has not asked them.
        planning_leaves_out: jobs that this server could not plan.
        slow: runs reads of storage and machines.
        submitting: runs submissions, whose paths are looked up and may be on a file system that hangs.
    """

    context: ServiceContext
    tokens: Tokens
    scrub: Scrubber
    meters: Meters
    explainer: Explainer
    wake: Callable[[], None]
    leads: Callable[[], bool]
    version: str
    machine: str
    trouble: Callable[[], str] = lambda: ""
    unanswered: Callable[[], str] = lambda: ""
    planning_leaves_out: Callable[[], Sequence[UnreadableRow]] = tuple
    slow: Slow = field(default_factory=lambda: Slow("requests for logs, nodes or reasons", threads=16))
    submitting: Slow = field(default_factory=lambda: Slow("submissions", threads=16))

    @property
    def store(self) -> Store:
        return self.context.store

    def set_aside(self) -> list[UnreadableRow]:
        """Return rows that cannot be read, and jobs that cannot be planned."""
        return [*self.store.unreadable(), *self.planning_leaves_out()]

    def set_aside_for(self, caller: Caller) -> tuple[str, ...]:
        """Describe the rows and jobs that are set aside. Callers who are no admins get the jobs that they may see."""
        return tuple(map(self.scrub.line, islice(named(self.set_aside(), caller), _MOST_SET_ASIDE)))

    def now_s(self) -> float:
        return self.context.clock.now_s()

    def job(self, job_id: str, caller: Caller) -> Job:
        return job_for(caller, self.store, job_id)

    def view(self, job: Job) -> api.JobView:
        view = api.JobView.of(job, self.now_s())
        more: dict[str, Any] = {}
        if (message := self.scrub.line(view.message)) != view.message:
            more["message"] = message
        if view.placement:
            label = self.context.machines.label
            more["on"] = tuple((label(node), workers) for node, workers in view.placement)
        return view.model_copy(update=more) if more else view

    def views(self, jobs: list[Job] | tuple[Job, ...]) -> tuple[api.JobView, ...]:
        return tuple(map(self.view, jobs))


def named(rows: Iterable[UnreadableRow], caller: Caller) -> Iterator[str]:
    """Yield each row that the caller may see, with its problem."""
    for row in rows:
        if row.table == "job" and caller.may_see(row.tenant or ""):
            yield f"{row.name}: {row.problem}"
        elif caller.is_admin:
            yield f"{row.table} {row.name}: {row.problem}"


def new_router(tag: str, prefix: str = "/v1", **options: Any) -> APIRouter:
    return APIRouter(prefix=prefix, tags=[tag], route_class=StrictRoute, **options)


def answer(model: BaseModel, status: int = 200) -> Response:
    """Answer with JSON. FastAPI's own way would validate the model again."""
    return Response(model.model_dump_json(), status, media_type="application/json")


# For the documentation only, because the gate checks tokens.
_TOKEN = HTTPBearer(scheme_name="token", description="Made by `fleetune tokens add`.", auto_error=False)


async def asker(request: Request, token: Annotated[Any, Depends(_TOKEN)]) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


Asker = Annotated[Caller, Depends(asker)]


async def writer(caller: Asker) -> Caller:
    caller.check_may_change()
    return caller


async def admin(caller: Asker) -> Caller:
    caller.check_is_admin()
    return caller


Writer = Annotated[Caller, Depends(writer)]
Admin = Annotated[Caller, Depends(admin)]
JobId = Annotated[str, Path(max_length=300, description="All of it; see `GET /v1/jobs?name=`.")]
Name = Annotated[str, Path(min_length=1, max_length=300)]
After = Annotated[int, Query(ge=0, le=api.NEWEST)]
Before = Annotated[int | None, Query(ge=0, le=api.NEWEST, description="Newest first: what is below this number.")]
Limit = Annotated[int, Query(ge=1, le=api.MOST_PAGE)]


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
