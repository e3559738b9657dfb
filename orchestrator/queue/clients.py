"""Names of clients that are Ray-submitted programs. They contain Ray's submission and a digest of its environment."""

from __future__ import annotations

from typing import Final

from orchestrator.queue.records import Job

_PREFIX: Final = "ray:"  # no other client's name may begin with it


def client_of(submission: str, environment: str) -> str:
    """Make the name of the client. `environment`: a digest of the program's environment."""
    return f"{_PREFIX}{submission}:{environment}"


def ray_submission_of(job: Job) -> str | None:
    """Return Ray's submission of the program that has queued this job; None: no such program has."""
    return job.client.split(":")[1] if job.client is not None and job.client.startswith(_PREFIX) else None


def environment_of(job: Job) -> str:
    """Return the digest of the environment of the Ray-submitted program; '' if none has queued this job."""
    return job.client.rpartition(":")[2] if job.client is not None and ray_submission_of(job) is not None else ""
