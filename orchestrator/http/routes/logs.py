"""Routes of what a job has written: events, logs, metrics; and why it is in its state. Storage may make them slow."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from orchestrator import api
from orchestrator.controller.set_aside import KIND as SET_ASIDE
from orchestrator.http.routing import After, Asker, Before, JobId, Limit, Serving, answer, documented, new_router
from orchestrator.queue.errors import UnknownJob, UnreadableJob
from orchestrator.queue.records import QueueEvent
from orchestrator.queue.store import Store
from orchestrator.service.context.caller import Caller
from orchestrator.service.context.identity import tokens_of
from orchestrator.service.observability import logs
from orchestrator.service.tenants import TENANT
from orchestrator.service.tokens import TOKEN

_MOST_KEPT = 200_000  # tenants of jobs
_PAGE, _MOST_PAGES = 1000, 50  # pages of events for one answer
_ADMINS = frozenset({TOKEN, SET_ASIDE})  # kinds of cluster events that only admins see

Source = Annotated[str, Path(max_length=300, description="One of `GET /v1/jobs/{job_id}/logs`.")]
LastPart = Annotated[bool, Query(description="The last part of the log, instead of the one from `after` on.")]


class Ownership:
    """Caches the tenants of jobs, which never change. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._tenant = functools.lru_cache(_MOST_KEPT)(functools.partial(_tenant_of, store))

    def sees(self, caller: Caller, job_id: str) -> bool:
        try:
            return caller.sees_all or caller.may_see(self._tenant(job_id))
        except UnknownJob:
            return False


def _tenant_of(store: Store, job_id: str) -> str:
    try:
        return store.job(job_id).tenant
    except UnreadableJob as error:
        return error.tenant


def routes(serving: Serving) -> APIRouter:
    router = new_router("what jobs have written")
    _events(router, serving, Ownership(serving.store))
    _logs(router, serving)
    return router


def _view(serving: Serving, event: QueueEvent, caller: Caller) -> api.EventView:
    data = dict(event.data)
    if event.job_id is None and not caller.sees_all:
        data.pop("attempts", None)  # of jobs of all tenants, which the evidence against a node names
    return api.EventView(
        number=event.number,
        at_s=event.at_s,
        kind=event.kind,
        message=serving.scrub.line(event.message),
        job_id=event.job_id,
        data=serving.scrub.value(data),
    )


def _sees(caller: Caller, event: QueueEvent, owners: Ownership) -> bool:
    """Whether a caller may see an event.

    Events of nodes and servers are public; those in _ADMINS name other tenants.
    """
    if event.job_id is not None:
        return owners.sees(caller, event.job_id)
    if event.kind == TENANT:
        return caller.may_see(str(event.data.get("tenant")))
    return event.kind not in _ADMINS or caller.is_admin


def _events(router: APIRouter, serving: Serving, owners: Ownership) -> None:
    @router.get("/jobs/{job_id}/events", **documented(api.Events, "What has happened to a job, oldest first", 404, 422))
    def of_job(
        job_id: JobId, caller: Asker, after: After = 0, before: Before = None, limit: Limit = api.MOST_PAGE
    ) -> Response:
        serving.job(job_id, caller)
        found = serving.store.events(job_id, after=after, before=before, limit=limit)
        last = found[-1].number if found else after
        if before is not None and len(found) < limit:
            last = 0
        return answer(api.Events(events=tuple(_view(serving, event, caller) for event in found), last=last))

    @router.get(
        "/events",
        **documented(
            api.Events, "What has happened, oldest first: of the jobs that one may see, and of the cluster", 422
        ),
    )
    async def of_all(caller: Asker, after: After = 0, before: Before = None, limit: Limit = api.MOST_PAGE) -> Response:
        def read() -> api.Events:
            found: list[QueueEvent] = []
            last = after if before is None else before
            for _ in range(_MOST_PAGES):
                low, high = (last, None) if before is None else (after, last)
                page = serving.store.events(after=low, before=high, limit=_PAGE)
                found += [event for event in page if _sees(caller, event, owners)]
                last = page[-1].number if page else last
                if len(page) < _PAGE and before is not None:
                    last = 0
                if len(page) < _PAGE or len(found) >= limit:
                    break
            last = found[limit - 1].number if len(found) > limit else last
            return api.Events(events=tuple(_view(serving, event, caller) for event in found[:limit]), last=last)

        return answer(await serving.slow.run(read))


def _logs(router: APIRouter, serving: Serving) -> None:
    context = serving.context

    @router.get(
        "/jobs/{job_id}/why",
        **documented(api.WhyView, "Why a job is where it is, and when it is expected to start", 404, 422),
    )
    async def why(job_id: JobId, caller: Asker) -> Response:
        def explained() -> api.WhyView:
            serving.job(job_id, caller)
            said = serving.explainer.why(job_id, caller)
            texts = {
                name: serving.scrub.line(getattr(said, name)) for name in ("text", "reason", "expected", "next_step")
            }
            return said.model_copy(update=texts)

        return answer(await serving.slow.run(explained))

    @router.get("/jobs/{job_id}/logs", **documented(api.LogSources, "The names of a job's logs", 400, 404, 422))
    async def sources(job_id: JobId, caller: Asker) -> Response:
        return answer(await serving.slow.run(lambda: logs.sources(context, serving.job(job_id, caller))))

    @router.get("/jobs/{job_id}/logs/{source}", **documented(api.LogPart, "A log, from a byte on", 400, 404, 422))
    async def part(job_id: JobId, source: Source, caller: Asker, after: After = 0, last: LastPart = False) -> Response:
        def read() -> api.LogPart:
            job = serving.job(job_id, caller)
            scrub = serving.scrub.and_also(tokens_of(context.driver_key, job))
            return logs.part(context, job, source, None if last else after, scrub)

        return answer(await serving.slow.run(read))

    @router.get(
        "/jobs/{job_id}/metrics",
        **documented(api.MetricsPart, "The metrics of a job's run, step by step", 400, 404, 422),
    )
    async def metrics(job_id: JobId, caller: Asker, after: After = 0) -> Response:
        def read() -> api.MetricsPart:
            found = logs.metrics(context, serving.job(job_id, caller), after)
            return found.model_copy(update={"records": tuple(map(serving.scrub.value, found.records))})

        return answer(await serving.slow.run(read))
