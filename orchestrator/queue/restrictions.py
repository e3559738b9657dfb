"""What a tenant may ask for, beyond its share of the GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.queue.errors import TooManyQueued

MEMBERS_MAX_PRIORITY = 0  # what a tenant's members may ask for where nothing is set


@dataclass(frozen=True)
class Restrictions:
    """The limits that an administrator sets for one tenant with `fleetune tenants set`.

    Attributes:
        max_priority: highest priority that members of the tenant may give to its jobs. Admins may give any, and so
            may everybody on a server without tokens.
        max_queued_jobs: jobs that wait at the same time. None: no limit of the tenant's own.
        max_runtime_s: longest run time of one job, in seconds; a job without `max_runtime_s` gets it. None: no limit.
        max_gpu_hours_per_month: GPU-hours of a calendar month in UTC, from which on no job of the tenant that needs
            GPUs starts. Running jobs go on. None: no limit.
        roots: directories and URLs under which the tenant's storage, data and models lie. None: anywhere.
        secrets: names of the server's secrets that the tenant's jobs may use.
    """

    max_priority: int = MEMBERS_MAX_PRIORITY
    max_queued_jobs: int | None = None
    max_runtime_s: float | None = None
    max_gpu_hours_per_month: float | None = None
    roots: tuple[str, ...] | None = None
    secrets: tuple[str, ...] = ()


DEFAULT_RESTRICTIONS = Restrictions()


def check_queued(tenant: str, most: int, queued: int, more: int) -> None:
    """Raises TooManyQueued where a tenant that has `queued` jobs in the queue may not add `more`."""
    if queued + more > most:
        raise TooManyQueued(
            f"tenant {tenant!r} may have at most {most:,} in the queue. It has {queued:,}, and this would add {more:,}."
            f" Wait until some have started, cancel some, or ask an admin: fleetune tenants set {tenant} --max-queued N"
        )
