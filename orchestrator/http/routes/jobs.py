"""Routes of jobs: submit, list, read, and change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from cluster.errors import FleetuneError
from orchestrator import api
from orchestrator.http.routing import After, Asker, JobId, Limit, Serving, Writer, answer, documented, new_router
from orchestrator.queue.errors import UnknownJob
from orchestrator.queue.records import Job
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.store import Change, Filter, SubmissionKey
from orchestrator.service.admission import limits
from orchestrator.service.admission.admit import admit
from orchestrator.service.admission.clients import check_client
from orchestrator.service.admission.parents import check_retry
from orchestrator.service.context.caller import Caller
from orchestrator.service.observability.scrub import without_secrets

_MOST_LOOKED_AT = 20  # most pages of changes that are read for one answer

OptionalTenant = Annotated[str | None, Query(min_length=1, max_length=100)]


def routes(serving: Serving) -> APIRouter:
    router = new_router("jobs")
    _submitting(router, serving)
    _lists(router, serving)
    _one(router, serving)
    _asking(router, serving)
    return router


def _submitting(router: APIRouter, serving: Serving) -> None:
    @router.post(
        "/jobs",
        status_code=201,
        **documented(api.JobPage, "Submit jobs: all of them, or none", 400, 404, 409, 415, 422),
    )
    async def submit(sent: api.Submission, caller: Writer) -> Response:
        """A submission that is repeated with the same `key` returns the existing jobs."""
        if sent.client is not None:
            check_client(sent.client)

        def submit() -> Response:
            digest = digest_of(sent.specs)
            key = None if sent.key is None else SubmissionKey(caller.name, sent.key, digest)
            jobs = submitted(serving, sent.specs, caller, key, sent.client)
            serving.meters.submitted.inc(len(jobs))
            serving.wake()
            return answer(api.JobPage(jobs=serving.views(jobs), next=None), 201)

        return await serving.submitting.run(submit)


def submitted(
    serving: Serving,
    specs: Sequence[Mapping[str, Any]],
    caller: Caller,
    key: SubmissionKey | None,
    client: str | None,
    packages: Sequence[str] = (),
) -> tuple[Job, ...]:
    """Submit specs. `packages`: folders that Ray unpacks wherever these jobs run."""
    try:
        new = admit(serving.context, specs, caller, client, packages)
        return serving.store.submit(new, serving.now_s(), key)
    except FleetuneError as error:
        # A repeated submission gets the same answer, even if it would be refused now.
        if key is not None and (jobs := serving.store.submitted(key)) is not None:
            return jobs
        if isinstance(error, UnknownJob) and not caller.sees_all:
            raise error.without_hint() from None  # they may be the ids of other tenants
        raise


def digest_of(specs: Any) -> str:
    """Return a digest that does not depend on the order of keys.

    Raises RequestValidationError: a number is not finite.
    """
    try:
        text = json.dumps(specs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        problem = {"type": "finite_number", "loc": ("body", "specs"), "msg": "a number in it is not finite"}
        raise RequestValidationError([problem]) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _lists(router: APIRouter, serving: Serving) -> None:
    @router.get("/jobs", **documented(api.JobPage, "A page of jobs, newest first", 422))
    def jobs(
        caller: Asker,
        tenant: OptionalTenant = None,
        state: Annotated[list[State] | None, Query(description="Any of these; repeatable.")] = None,
        name: Annotated[str | None, Query(max_length=300, description="Start of a job's id.")] = None,
        before: Annotated[int | None, Query(ge=0, le=api.NEWEST, description="`next` of the page before.")] = None,
        after: Annotated[
            int | None, Query(ge=0, le=api.NEWEST, description="Oldest first: 0, or `next` of the page before.")
        ] = None,
        limit: Limit = 100,
    ) -> Response:
        if not caller.may_look(tenant):
            return answer(api.JobPage(jobs=(), next=None))
        which = Filter(tenant or caller.tenant, tuple(state or ()), name or None)
        found = serving.store.jobs(which, before=before, after=after, limit=limit + 1)
        page = found[:limit]
        following = page[-1].number if len(found) > limit else None
        aside, unanswered = serving.set_aside_for(caller), serving.scrub.line(serving.unanswered())
        found_page = api.JobPage(jobs=serving.views(page), next=following, set_aside=aside, unanswered=unanswered)
        return answer(found_page)

    @router.get("/counts", **documented(api.Counts, "Jobs by state", 422))
    def counts(caller: Asker, tenant: OptionalTenant = None) -> Response:
        found = serving.store.count(Filter(tenant or caller.tenant)) if caller.may_look(tenant) else {}
        return answer(api.Counts(states=found))

    @router.get("/changes", **documented(api.Changes, "Jobs that have changed since", 422))
    def changes(caller: Asker, after: After = 0, limit: Limit = api.MOST_PAGE) -> Response:
        """With `after=0`, the answer has only `last`: where to begin.

        If `last` is below `after`, the store was restored from a backup: all that was known of jobs may be wrong.
        """
        if after == 0:
            return answer(api.Changes(jobs=(), last=max(serving.store.last_change(), 1)))
        found, last = _changes(serving, caller, after, limit)
        if last == after:  # nothing is newer; a restored store has counted less far
            last = min(last, max(serving.store.last_change(), 1))
        return answer(api.Changes(jobs=serving.views(found), last=last))


def _changes(serving: Serving, caller: Caller, after: int, limit: int) -> tuple[list[Job], int]:
    found: list[Job] = []
    for _ in range(_MOST_LOOKED_AT):
        page = serving.store.changes(after, limit)
        after = page[-1].changed if page else after
        found += [job for job in page if caller.may_see(job.tenant)]
        if found or len(page) < limit:
            break
    return found, after


def _one(router: APIRouter, serving: Serving) -> None:
    @router.get("/jobs/{job_id}", **documented(api.JobView, "One job", 404, 422))
    def job(job_id: JobId, caller: Asker) -> Response:
        return answer(serving.view(serving.job(job_id, caller)))

    @router.get("/jobs/{job_id}/spec", **documented(dict[str, Any], "What was submitted, as it was resolved", 404, 422))
    def spec(job_id: JobId, caller: Asker) -> Response:
        """The values of variables whose names look secret are left out."""
        serving.job(job_id, caller)
        content = serving.scrub.value(without_secrets(json.loads(serving.store.spec(job_id))))
        return Response(json.dumps(content), media_type="application/json")


def _asking(router: APIRouter, serving: Serving) -> None:
    def asked(job_id: str, caller: Caller, change: Change) -> Response:
        serving.job(job_id, caller)
        job = serving.store.ask(job_id, change, serving.now_s(), caller.name)
        serving.wake()
        return answer(serving.view(job))

    def order(name: str, wanted: DesiredState, summary: str) -> None:
        @router.post(f"/jobs/{{job_id}}/{name}", name=name, **documented(api.JobView, summary, 404, 409, 422))
        def ordered(job_id: JobId, caller: Writer) -> Response:
            return asked(job_id, caller, Change(wanted=wanted))

    order("cancel", DesiredState.CANCEL, "Cancel a job; a running one stops soon")
    order("pause", DesiredState.PAUSE, "Pause a job: it leaves its nodes and waits")
    order("resume", DesiredState.RUN, "Let a paused job go on")

    @router.post(
        "/jobs/{job_id}/retry",
        **documented(api.JobView, "Queue a job again after it has failed or was cancelled", 404, 409, 422),
    )
    def retry(job_id: JobId, caller: Writer) -> Response:
        check_retry(serving.store, serving.job(job_id, caller), caller)
        job = serving.store.retry(job_id, serving.now_s(), caller.name)
        serving.wake()
        return answer(serving.view(job))

    @router.put(
        "/jobs/{job_id}/priority", **documented(api.JobView, "Change the priority of a job", 404, 409, 415, 422)
    )
    def priority(job_id: JobId, sent: api.Priority, caller: Writer) -> Response:
        tenant = serving.context.tenant(serving.job(job_id, caller).tenant)
        if tenant is not None:
            limits.check_priority(sent.priority, tenant, caller)
        return asked(job_id, caller, Change(priority=sent.priority))
