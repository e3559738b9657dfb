"""Ray-submitted programs that ask to be queued. Messages are in `jobs.drivers.link.messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.text import many
from jobs.drivers.link.messages import Looked
from orchestrator.queue.errors import QueueError
from orchestrator.queue.records import Job, ray_submission_of
from orchestrator.queue.states import ENDED, Reason, State
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability import logs

_EXIT_CODES: Final[Mapping[State, int]] = {State.SUCCEEDED: 0, State.FAILED: 1, State.CANCELLED: 130}
_BAD_INPUT: Final = 2


class TooManyGuests(QueueError):
    status = 409


def check_room(context: ServiceContext, client: str) -> None:
    """Check that one more program may be queued: each uses memory on the head node while it waits.

    A program that is queued already may ask again.

    Raises:
        TooManyGuests: the limit is reached.
    """
    there = {job.client for job in context.store.of_clients() if ray_submission_of(job) is not None}
    if client not in there and len(there) >= context.most_ray_submitted:
        raise TooManyGuests(
            f"this server queues at most {many(context.most_ray_submitted, 'program')} of `ray job submit` (fleetune "
            "serve --most-ray-submitted), because each of them uses memory on the head node while it waits. Submit "
            "again when one has ended, or use `fleetune submit`, which leaves no process behind"
        )


def look(context: ServiceContext, job: Job, attempt: int, after: int) -> Looked:
    """Return new output of a job's attempts, one attempt after the other. The caller fills in `words`.

    Raises:
        BackendUnreachable: the output cannot be read at the moment.
    """
    attempt, after = (attempt, after) if attempt else (min(job.attempt, 1), 0)
    exit_code = exit_code_of(job)
    if not attempt:
        return Looked(exit_code=exit_code)
    part = logs.part(context, job, f"{logs.OUTPUT}-{min(attempt, job.attempt)}", after)
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


def exit_code_of(job: Job) -> int | None:
    """Return the exit code of the program for the end of its job; None: the job has not ended."""
    if job.state not in ENDED:
        return None
    return _BAD_INPUT if job.state is State.FAILED and job.reason is Reason.BAD_INPUT else _EXIT_CODES[job.state]
