"""Routes for programs that `ray job submit` has started: they queue their job, and follow it to its end.

The messages are in `jobs.drivers.link.messages`.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from jobs.drivers.link.messages import Join, Joined, Look, Looked
from orchestrator.http.routes.jobs import digest_of, submitted
from orchestrator.http.routing import Asker, Serving, Slow, Writer, answer, documented, new_router
from orchestrator.queue.errors import QueueError
from orchestrator.queue.records import Job, client_of
from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import SubmissionKey
from orchestrator.service.context.caller import Caller
from orchestrator.service.context.identity import tokens_of
from orchestrator.service.observability.state_text import describe_ended
from orchestrator.service.ray_submitted import check_room, look

_WHO = "a program of `ray job submit`"


def routes(serving: Serving) -> APIRouter:
    router = new_router("ray-submitted", "/v1/guest")
    context = serving.context
    # Between the check for room and the entry in the store, no other job may come.
    one_by_one = Slow("programs of `ray job submit`", threads=1)

    @router.post(
        "/join",
        status_code=201,
        **documented(Joined, "Queue the job of a program that Ray has started", 400, 404, 409, 415, 422),
    )
    async def join(sent: Join, caller: Writer) -> Response:
        return answer(Joined(job_id=await one_by_one.run(lambda: joined(sent, caller))), 201)

    def joined(sent: Join, caller: Caller) -> str:
        context.check_queue(sent.queue, _WHO)
        if context.engine == "local" or sent.spec.get("kind", "finetune") == "command":
            raise QueueError(
                "a job that comes through `ray job submit` must be a training job for the Ray cluster of this queue. "
                "This one has kind: command, or this server does not use Ray"
            )
        client = client_of(sent.submission, sent.environment)
        key = SubmissionKey(caller.name, f"{client}:{sent.key}", digest_of([sent.spec]))
        packages = () if sent.package is None else (sent.package,)
        check_room(context, client)
        (job,) = submitted(serving, [sent.spec], caller, key, client, packages)
        serving.meters.submitted.inc()
        serving.wake()
        return job.job_id

    @router.post(
        "/look", **documented(Looked, "The new output of such a job, and its state in words", 404, 409, 415, 422)
    )
    async def looked(sent: Look, caller: Asker) -> Response:
        def read() -> Looked:
            context.check_queue(sent.queue, _WHO)
            job = serving.job(sent.job_id, caller)
            scrub = serving.scrub.and_also(tokens_of(serving.context.driver_key, job))
            told = look(context, job, sent.attempt, sent.after, scrub)
            return told.model_copy(update={"words": scrub.line(_describe(serving, job, caller))})

        return answer(await serving.slow.run(read))

    return router


def _describe(serving: Serving, job: Job, caller: Caller) -> str:
    """Describe a waiting or ended job in one line; '' for a running job, which writes output itself."""
    if job.state is State.RUNNING:
        return ""
    if job.state not in ENDED:
        return serving.explainer.why(job.job_id, caller).reason
    told = describe_ended(job, serving.now_s())
    again = ["to do: submit it again with ray job submit"] if job.state is not State.SUCCEEDED else []
    return "; ".join([told.reason, *told.more, *again])
