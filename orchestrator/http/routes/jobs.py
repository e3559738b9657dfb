"""Routes of jobs: submit, list, read, and change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from cluster.errors import FleetuneError
from orchestrator import api
from orchestrator.http.routing import NEWEST, After, Asker, JobId, Limit, Serving, Writer, answer, problems, sees_all
from orchestrator.http.routing import router as made
from orchestrator.http.scrub import without_secrets
from orchestrator.queue.errors import UnknownJob
from orchestrator.queue.records import Job
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.store import Change, Filter, SubmissionKey
from orchestrator.queue.tenants import Tenant
from orchestrator.service.admission import limits
from orchestrator.service.admission.admit import admit
from orchestrator.service.admission.clients import check_client
from orchestrator.service.admission.parents import check_retry
from orchestrator.service.context.caller import Caller

_MOST_LOOKED_AT = 20  # most pages of changes that are read for one answer

OptionalTenant = Annotated[str | None, Query(min_length=1, max_length=100)]


def routes(serving: Serving) -> APIRouter:
    router = made("jobs")
    _submitting(router, serving)
    _lists(router, serving)
    _one(router, serving)
    _asking(router, serving)
    return router


def _submitting(router: APIRouter, serving: Serving) -> None:
    @router.post(
        "/jobs",
        status_code=201,
        response_model=api.JobPage,
        responses=problems(400, 401, 403, 404, 409, 413, 422),
        summary="Submit jobs: all of them, or none",
    )
    def submit(sent: api.Submission, caller: Writer) -> Response:
        """A submission that is repeated with the same `key` returns the existing jobs."""
        if sent.client is not None:
            check_client(sent.client)
        digest = digest_of(sent.specs)
        key = None if sent.key is None else SubmissionKey(caller.name, sent.key, digest)
        jobs = submitted(serving, sent.specs, caller, key, sent.client)
        serving.meters.submitted.inc(len(jobs))
        serving.wake()
        return answer(api.JobPage(jobs=serving.views(jobs), next=None), 201)


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
        if isinstance(error, UnknownJob) and not sees_all(caller):
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
    @router.get(
        "/jobs", response_model=api.JobPage, responses=problems(401, 403, 422), summary="A page of jobs, newest first"
    )
    def jobs(
        caller: Asker,
        tenant: OptionalTenant = None,
        state: Annotated[list[State] | None, Query(description="Any of these; repeatable.")] = None,
        name: Annotated[str | None, Query(max_length=300, description="Start of a job's id.")] = None,
        before: Annotated[int | None, Query(ge=0, le=NEWEST, description="`next` of the page before.")] = None,
        after: Annotated[
            int | None, Query(ge=0, le=NEWEST, description="Oldest first: 0, or `next` of the page before.")
        ] = None,
        limit: Limit = 100,
    ) -> Response:
        if not _may_look(caller, tenant):
            return answer(api.JobPage(jobs=(), next=None))
        which = Filter(tenant or caller.tenant, tuple(state or ()), name or None)
        found = serving.store.jobs(which, before=before, after=after, limit=limit + 1)
        page = found[:limit]
        following = page[-1].number if len(found) > limit else None
        aside = serving.set_aside_for(caller)
        return answer(api.JobPage(jobs=serving.views(page), next=following, set_aside=aside))

    @router.get("/counts", response_model=api.Counts, responses=problems(401, 403, 422), summary="Jobs by state")
    def counts(caller: Asker, tenant: OptionalTenant = None) -> Response:
        found = serving.store.count(Filter(tenant or caller.tenant)) if _may_look(caller, tenant) else {}
        return answer(api.Counts(states=found))

    @router.get(
        "/changes", response_model=api.Changes, responses=problems(401, 422), summary="Jobs that have changed since"
    )
    def changes(caller: Asker, after: After = 0, limit: Limit = api.MOST_PAGE) -> Response:
        """With `after=0`, the answer has only `last`: where to begin."""
        if after == 0:
            return answer(api.Changes(jobs=(), last=max(serving.store.last_change(), 1)))
        found, last = _changes(serving, caller, after, limit)
        return answer(api.Changes(jobs=serving.views(found), last=last))


def _may_look(caller: Caller, tenant: str | None) -> bool:
    """Whether the caller may see a tenant's jobs. If not, the answer is empty, whether there are any or not."""
    return tenant is None or caller.may_see(tenant)


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
    @router.get("/jobs/{job_id}", response_model=api.JobView, responses=problems(401, 404, 422), summary="One job")
    def job(job_id: JobId, caller: Asker) -> Response:
        return answer(serving.view(serving.job(job_id, caller)))

    @router.get(
        "/jobs/{job_id}/spec",
        response_model=dict[str, Any],
        responses=problems(401, 404, 422),
        summary="What was submitted, as it was resolved",
    )
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

    documented: Callable[[str, str], dict[str, Any]] = lambda path, summary: {  # noqa: E731
        "path": f"/jobs/{{job_id}}/{path}",
        "response_model": api.JobView,
        "responses": problems(401, 403, 404, 409, 422),
        "summary": summary,
    }

    @router.post(**documented("cancel", "Cancel a job; a running one stops soon"))
    def cancel(job_id: JobId, caller: Writer) -> Response:
        return asked(job_id, caller, Change(wanted=DesiredState.CANCEL))

    @router.post(**documented("pause", "Pause a job: it leaves its nodes and waits"))
    def pause(job_id: JobId, caller: Writer) -> Response:
        return asked(job_id, caller, Change(wanted=DesiredState.PAUSE))

    @router.post(**documented("resume", "Let a paused job go on"))
    def resume(job_id: JobId, caller: Writer) -> Response:
        return asked(job_id, caller, Change(wanted=DesiredState.RUN))

    @router.post(**documented("retry", "Queue a job again after it has failed or was cancelled"))
    def retry(job_id: JobId, caller: Writer) -> Response:
        known = serving.job(job_id, caller)
        check_retry(serving.store, known, caller)
        limits.check_room(serving.store, _tenant(serving, known))
        job = serving.store.retry(job_id, serving.now_s(), caller.name)
        serving.wake()
        return answer(serving.view(job))

    @router.put(**documented("priority", "Change the priority of a job"))
    def priority(job_id: JobId, sent: api.Priority, caller: Writer) -> Response:
        tenant = _tenant(serving, serving.job(job_id, caller))
        if tenant is not None:
            limits.check_priority(sent.priority, tenant, caller)
        return asked(job_id, caller, Change(priority=sent.priority))


def _tenant(serving: Serving, job: Job) -> Tenant | None:
    return next((one for one in serving.store.tenants() if one.name == job.tenant), None)
