"""Clients that are Ray-submitted programs: their names, which hold Ray's submission and a digest of its environment."""

from __future__ import annotations

from typing import Final

from orchestrator.queue.records import Job

_PREFIX: Final = "ray:"  # what no other client's name may begin with


def client_of(submission: str, environment: str) -> str:
    """The client that a guest is: its jobs end with it. `environment`: the digest of the guest's own."""
    return f"{_PREFIX}{submission}:{environment}"


def guest_of(job: Job) -> str | None:
    """The name under which Ray knows the guest whose job it is; None: it is nobody's."""
    return job.client.split(":")[1] if job.client is not None and job.client.startswith(_PREFIX) else None


def environment_of(job: Job) -> str:
    """The digest of the guest's environment; '' without a guest."""
    return job.client.rpartition(":")[2] if job.client is not None and guest_of(job) is not None else ""
