"""Tokens of attempts that must not be shown in a job's output."""

from __future__ import annotations

from orchestrator.queue.records import Job
from orchestrator.service.context.identity import DriverKey, attempt_token, signature_of

_MOST_ATTEMPTS = 100


def tokens_of(key: DriverKey, job: Job) -> list[str]:
    """Return the secret parts of the tokens that the drivers of a job were started with."""
    value, attempts = key.value(), range(max(job.attempt - _MOST_ATTEMPTS, 0), job.attempt)
    return [signature_of(attempt_token(value, job.job_id, attempt + 1)) for attempt in attempts]
