"""What the routes work with, and how they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from orchestrator import api
from orchestrator.http.auth import Tokens, check_writer
from orchestrator.http.body import StrictRoute
from orchestrator.http.errors import TooMany
from orchestrator.http.gate import CALLER
from orchestrator.http.metrics import Meters
from orchestrator.http.scrub import Scrubber
from orchestrator.queue.errors import UnknownJob, UnreadableJob
from orchestrator.queue.records import Job, UnreadableRow
from orchestrator.queue.store import Store
from orchestrator.service.context.caller import Caller
from orchestrator.service.context.context import Surroundings
from orchestrator.service.observability.explain import Explainer

Result = TypeVar("Result")
Responses = dict[int | str, dict[str, Any]]

NEWEST: Final = 2**63 - 1
_MOST_SET_ASIDE: Final = 100
_WHAT: Final = {
    400: "It cannot be done.",
    401: "No token, or one that is not known.",
    403: "The token may not do that.",
    404: "There is no such thing, or it is somebody else's.",
    409: "It is too late or too early for that, or the name is taken.",
    410: "The attempt is over.",
    413: "The body is too large.",
    422: "What was sent has the wrong shape.",
    429: "Too many at once.",
    500: "The server has failed.",
    503: "Store or machines do not answer now.",
}


def problems(*statuses: int) -> Responses:
    """What a route may answer with besides its result, for its documentation."""
    return {status: {"model": api.Problem, "description": _WHAT[status]} for status in sorted({*statuses, 500, 503})}


class Slow:
    """A pool of threads for what waits for storage, so that it takes none from what does not.

    Args:
        threads: at work at once.
        waiting: more than so many that wait are sent away.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._limiter, self._most = anyio.CapacityLimiter(threads), waiting

    async def run(self, call: Callable[[], Result]) -> Result:
        """Raises TooMany."""
        if self._limiter.statistics().tasks_waiting >= self._most:
            raise TooMany("too many ask for logs, nodes or reasons at once: try again in a few seconds")
        return await to_thread.run_sync(call, limiter=self._limiter)


@dataclass(frozen=True)
class Serving:
    """
    Attributes:
        wake: makes the next pass come at once.
        leads: whether this server does.
        machine: as `api.Server` has it.
        trouble: why the queue does not move; '' where it does.
        planning_leaves_out: jobs that this server could not plan.
    """

    surroundings: Surroundings
    tokens: Tokens
    scrub: Scrubber
    meters: Meters
    explainer: Explainer
    wake: Callable[[], None]
    leads: Callable[[], bool]
    version: str
    machine: str
    trouble: Callable[[], str] = lambda: ""
    planning_leaves_out: Callable[[], Sequence[UnreadableRow]] = tuple
    slow: Slow = field(default_factory=lambda: Slow(threads=16, waiting=256))

    @property
    def store(self) -> Store:
        return self.surroundings.store

    def set_aside(self) -> list[UnreadableRow]:
        """Rows that cannot be read, and jobs that cannot be planned."""
        return [*self.store.unreadable(), *self.planning_leaves_out()]

    def set_aside_for(self, caller: Caller) -> tuple[str, ...]:
        """The same in words: to an admin all of them, to others the jobs that they may see."""
        return tuple(map(self.scrub.line, islice(named(self.set_aside(), caller), _MOST_SET_ASIDE)))

    def now_s(self) -> float:
        return self.surroundings.clock.now_s()

    def job(self, job_id: str, caller: Caller) -> Job:
        """Raises UnknownJob, with the same words for what is not there and for what is others'."""
        try:
            job = self.store.job(job_id)
        except UnknownJob:
            if sees_all(caller):
                raise
            raise unknown(job_id) from None
        except UnreadableJob as error:
            if caller.may_see(error.tenant):
                raise
            raise unknown(job_id) from None
        if not caller.may_see(job.tenant):
            raise unknown(job_id)
        return job

    def view(self, job: Job) -> api.JobView:
        view = api.JobView.of(job, self.now_s())
        more: dict[str, Any] = {}
        if (message := self.scrub.line(view.message)) != view.message:
            more["message"] = message
        if view.placement:
            label = self.surroundings.machines.label
            more["on"] = tuple((label(node), workers) for node, workers in view.placement)
        return view.model_copy(update=more) if more else view

    def views(self, jobs: list[Job] | tuple[Job, ...]) -> tuple[api.JobView, ...]:
        return tuple(map(self.view, jobs))


def sees_all(caller: Caller) -> bool:
    return caller.is_admin or caller.tenant is None


def named(rows: Iterable[UnreadableRow], caller: Caller) -> Iterator[str]:
    """Each row that the caller may see, with its problem."""
    for row in rows:
        if row.table == "job" and caller.may_see(row.tenant or ""):
            yield f"{row.name}: {row.problem}"
        elif caller.is_admin:
            yield f"{row.table} {row.name}: {row.problem}"


def unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"there is no job {job_id!r}")


def router(tag: str, prefix: str = "/v1") -> APIRouter:
    return APIRouter(prefix=prefix, tags=[tag], route_class=StrictRoute)


def answer(model: BaseModel, status: int = 200) -> Response:
    """As JSON. FastAPI would look at all of it again."""
    return Response(model.model_dump_json(), status, media_type="application/json")


async def asker(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


async def writer(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    check_writer(caller)
    return caller


async def admin(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    caller.check_is_admin()
    return caller


Asker = Annotated[Caller, Depends(asker)]
Writer = Annotated[Caller, Depends(writer)]
Admin = Annotated[Caller, Depends(admin)]
JobId = Annotated[str, Path(max_length=300, description="All of it; see `GET /v1/jobs?name=`.")]
Name = Annotated[str, Path(min_length=1, max_length=300)]
After = Annotated[int, Query(ge=0, le=NEWEST)]
Before = Annotated[int | None, Query(ge=0, le=NEWEST, description="Newest first: what is below this number.")]
Limit = Annotated[int, Query(ge=1, le=api.MOST_PAGE)]
