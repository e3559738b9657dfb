"""The tokens of attempts, which nobody who reads a job's output is to see."""

from __future__ import annotations

from orchestrator.queue.records import Job
from orchestrator.server.serving import Serving
from orchestrator.service.driverkey import attempt_token, signature_of

_MOST_ATTEMPTS = 100


def tokens_of(serving: Serving, job: Job) -> list[str]:
    """The secret parts of those that its drivers were started with."""
    key, attempts = serving.surroundings.driver_key.value(), range(max(job.attempt - _MOST_ATTEMPTS, 0), job.attempt)
    return [signature_of(attempt_token(key, job.job_id, attempt + 1)) for attempt in attempts]
