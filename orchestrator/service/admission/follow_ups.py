"""Follow-ups: a small job that is submitted when another one has ended (`queue.on_end`)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cluster.capacity.gang import Gang
from cluster.python_module import module_command
from jobs.spec.command import CommandSpec
from jobs.spec.load import job_in
from jobs.spec.queue import OnEnd, Queue
from orchestrator.queue.errors import QueueError
from orchestrator.queue.records import Job, NewJob, QueueEvent
from orchestrator.queue.store import SubmissionKey
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability.scrub import Scrubber

_SCOPE = "fleetune"
_LONGEST_NAME, _END = 63, "-on-end"
_LONGEST_MESSAGE = 10_000
_AT_ONCE = 50  # most follow-ups after one pass


def follow_up(context: ServiceContext) -> int:
    """Submit follow-ups that are due. Called by the leader after each pass. Returns their number.

    It is safe to call it twice for the same end.

    Raises:
        StoreBroken: nothing is lost; the next call goes on.
    """
    due = context.store.followups_due(_AT_ONCE)
    for job in due:
        try:
            _submit(context, job)
        except (ValueError, LookupError, TypeError, QueueError) as error:  # a retry would fail again and hold up others
            said = " ".join(f"its follow-up (queue.on_end) cannot be submitted: {error}".split())[:_LONGEST_MESSAGE]
            context.store.add_events([QueueEvent(context.clock.now_s(), "on-end", said, job.job_id)])
        context.store.followed(job)
    return len(due)


def _submit(context: ServiceContext, job: Job) -> None:
    job = replace(job, message=Scrubber(context.secrets.values()).text(job.message))  # a webhook sends it out
    new = follower(job, json.loads(context.store.spec(job.job_id)), context.python)
    tenant = context.tenant(job.tenant)
    if tenant is not None:
        new = replace(new, max_runtime_s=tenant.restrictions.max_runtime_s)
    # `changed` identifies this end: a job that is retried ends once more.
    key = SubmissionKey(_SCOPE, f"on-end-{job.job_id}-{job.changed}", job.on_end)
    context.store.submit([new], context.clock.now_s(), key)


def follower(job: Job, spec: dict[str, Any], python: tuple[str, ...]) -> NewJob:
    """Make the job that follows one that has ended. It has no follow-up itself."""
    on_end, environment, queue = OnEnd.model_validate_json(job.on_end), _told(job), spec.get("queue") or {}
    command = on_end.command or module_command("jobs.webhook", python=python)
    if on_end.webhook is not None:
        environment |= {"FLEETUNE_WEBHOOK_URL": on_end.webhook, "FLEETUNE_WEBHOOK_BODY": json.dumps(_body(job))}
    made = CommandSpec(
        kind="command",
        name=job.name[: _LONGEST_NAME - len(_END)] + _END,
        command=command,
        # A webhook imports nothing from there, where a module could have the name of one of ours.
        working_dir=job_in(spec).get("working_dir") if on_end.command else None,
        env=environment,
        # A webhook needs no secrets, and must be sent also if they have been withdrawn since.
        queue=Queue(
            tenant=job.tenant,
            priority=job.priority,
            secrets=tuple(queue.get("secrets") or ()) if on_end.command else (),
        ),
    )
    return NewJob(
        name=made.name,
        kind=made.kind,
        tenant=job.tenant,
        spec=made.model_dump_json(),
        gang=Gang(1, 1, 0),
        submitted_by=job.submitted_by,
        priority=job.priority,
        preemptible=False,
    )


def _told(job: Job) -> dict[str, str]:
    """Return the environment variables that describe the ended job."""
    return {f"FLEETUNE_ENDED_{name.upper()}": "" if value is None else str(value) for name, value in _body(job).items()}


def _body(job: Job) -> dict[str, Any]:
    message = job.message.replace("\0", " ")[:_LONGEST_MESSAGE]
    facts = {"job": job.job_id, "state": job.state.value, "reason": job.reason.value, "message": message}
    return {**facts, "run": job.run, "name": job.name, "tenant": job.tenant, "attempt": job.attempt}
