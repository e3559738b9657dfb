"""Ray-submitted programs that ask to be queued. Messages are in `jobs.drivers.link.messages`."""

from __future__ import annotations

import contextlib

from cluster.errors import BackendUnreachable
from cluster.text import many
from jobs.drivers.link.messages import Looked
from orchestrator.api import exit_code_of
from orchestrator.queue.errors import QueueError
from orchestrator.queue.names import output_of
from orchestrator.queue.records import Job, ray_submission_of
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability import logs
from orchestrator.service.observability.scrub import Scrubber


class TooManyGuests(QueueError):
    status = 409


def check_room(context: ServiceContext, client: str) -> None:
    """Check that one more program may be queued: each uses memory on the head node while it waits.

    A program that is queued already may ask again. Only programs that Ray knows to run count. Anybody who may submit
    jobs can invent names of programs, and would otherwise keep out all others.

    Raises:
        TooManyGuests: the limit is reached.
    """
    jobs = [job for job in context.store.of_clients() if ray_submission_of(job) is not None]
    there, most = {ray_submission_of(job) for job in jobs}, context.most_ray_submitted
    if any(job.client == client for job in jobs) or len(there) < most:
        return
    with contextlib.suppress(BackendUnreachable):  # then all of them count
        there &= set(context.backend.others())
    if len(there) >= most:
        raise TooManyGuests(
            f"this server queues at most {many(context.most_ray_submitted, 'program')} of `ray job submit` (fleetune "
            "serve --most-ray-submitted), because each of them uses memory on the head node while it waits. Submit "
            "again when one has ended, or use `fleetune submit`, which leaves no process behind"
        )


def look(context: ServiceContext, job: Job, attempt: int, after: int, scrub: Scrubber) -> Looked:
    """Return new output of a job's attempts, one attempt after the other. The caller fills in `words`.

    Raises:
        BackendUnreachable: the output cannot be read at the moment.
    """
    attempt, after = (attempt, after) if attempt else (min(job.attempt, 1), 0)
    exit_code = exit_code_of(job.state, job.reason)
    if not attempt:
        return Looked(exit_code=exit_code)
    part = logs.part(context, job, output_of(min(attempt, job.attempt)), after, scrub)
    if part.ended and attempt < job.attempt:
        return Looked(output=part.text, attempt=attempt + 1, more=True)
    is_all = part.ended or part.next - after < logs.PART_BYTES // 2
    return Looked(
        output=part.text,
        attempt=attempt,
        after=part.next,
        more=not is_all,
        exit_code=exit_code if part.ended else None,
    )
