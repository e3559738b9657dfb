"""Tenants: their shares of the cluster, and the limits of their jobs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from orchestrator.queue.errors import QueueError, TooManyQueued

MEMBERS_MAX_PRIORITY = 0  # highest priority that members may use if nothing is set
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> None:
    """Check the name of a tenant. Raises QueueError."""
    if not _NAME.fullmatch(name):
        raise QueueError(
            f"{name[:100]!r} cannot be a tenant's name: give a letter or digit, then up to 99 letters, digits, '.', "
            "'_' and '-'"
        )


@dataclass(frozen=True)
class Restrictions:
    """The limits that an administrator sets for one tenant with `fleetune tenants set`.

    Attributes:
        max_priority: highest priority that members of the tenant may give its jobs. Admins may give any, and so may all
            callers of a server without tokens.
        max_queued_jobs: most jobs that wait at the same time. None: no limit for this tenant.
        max_runtime_s: longest run time of one job, in seconds; a job without `max_runtime_s` gets it. None: no limit.
        max_gpu_hours_per_month: GPU-hours in a calendar month (UTC), after which no job of the tenant that needs GPUs
            starts. Running jobs go on. None: no limit.
        roots: directories and URLs that must contain the tenant's storage, data and models. None: no restriction.
        secrets: names of the server's secrets that the tenant's jobs may use.
    """

    max_priority: int = MEMBERS_MAX_PRIORITY
    max_queued_jobs: int | None = None
    max_runtime_s: float | None = None
    max_gpu_hours_per_month: float | None = None
    roots: tuple[str, ...] | None = None
    secrets: tuple[str, ...] = ()


DEFAULT_RESTRICTIONS = Restrictions()


Quota = tuple[tuple[str | None, int], ...]  # (accelerator type, GPUs); type None: all types together


@dataclass(frozen=True)
class Tenant:
    """A team that shares the cluster.

    Attributes:
        weight: its share of the cluster, relative to the weights of the others.
        guaranteed: GPUs that it gets back at once when it needs them, by type. What it leaves idle is lent.
        limit: most GPUs that it may hold, by type.
        restrictions: what its jobs may ask for; checked when they are submitted.
    """

    name: str
    weight: float = 1.0
    guaranteed: Quota = ()
    limit: Quota = ()
    restrictions: Restrictions = DEFAULT_RESTRICTIONS

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight of tenant {self.name!r} must be above 0, and is {self.weight}")


def check_queued(tenant: str, most: int, queued: int, more: int) -> None:
    """Raise TooManyQueued if a tenant that has `queued` jobs in the queue may not add `more`."""
    if queued + more > most:
        raise TooManyQueued(
            f"tenant {tenant!r} may have at most {most:,} in the queue. It has {queued:,}, and this would add {more:,}."
            f" Wait until some have started, cancel some, or ask an admin: fleetune tenants set {tenant} --max-queued N"
        )
