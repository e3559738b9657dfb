"""Limits of a tenant's jobs, checked when jobs are submitted, changed, and given secrets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from cluster.errors import InputError
from jobs.spec.queue import Queue
from orchestrator.queue.errors import Forbidden, QueueError
from orchestrator.queue.records import Role
from orchestrator.queue.tenants import Tenant
from orchestrator.service.context.caller import Caller


def problems(queue: Queue, tenant: Tenant, caller: Caller, secrets: Collection[str]) -> Iterator[InputError]:
    """Yield what a job asks for beyond its limits. `secrets`: names of the server's secrets."""
    try:
        check_priority(queue.priority, tenant, caller)
    except Forbidden as error:
        yield Forbidden.at("queue.priority", str(error))
    most_s = tenant.restrictions.max_runtime_s
    if most_s is not None and queue.max_runtime_s is not None and queue.max_runtime_s > most_s:
        yield QueueError.at(
            "queue.max_runtime_s",
            f"{queue.max_runtime_s:,.0f} s are asked for, and a job of tenant {tenant.name!r} may run for "
            f"{most_s:,.0f} s: ask for less, or leave it out",
        )
    yield from wrong_secrets(queue.secrets, tenant, secrets)


def check_priority(priority: int, tenant: Tenant, caller: Caller) -> None:
    """Check a priority. Admins may give any, and so may all callers of a server without tokens.

    Raises:
        Forbidden: the caller is a member, and the priority is above the tenant's highest.
    """
    most = tenant.restrictions.max_priority
    if caller.role is Role.MEMBER and priority > most:
        raise Forbidden(
            f"priority {priority} is above {most}, the highest for members of tenant {tenant.name!r}: give a lower "
            f"one, or ask an admin (fleetune tenants set {tenant.name} --max-priority N)"
        )


def wrong_secrets(names: Sequence[str], tenant: Tenant, there: Collection[str]) -> Iterator[QueueError]:
    """Yield an error for secrets that the tenant was not given, and for each that the server lacks.

    Args:
        there: names of the server's secrets.
    """
    given = tenant.restrictions.secrets
    if missing := [name for name in names if name not in given]:
        options = "".join(f" --secret {name}" for name in (*given, *missing))
        yield QueueError.at(
            "queue.secrets",
            f"tenant {tenant.name!r} was not given {', '.join(missing)}. An admin gives it: fleetune tenants set "
            f"{tenant.name}{options}",
        )
    for name in names:
        if name in given and name not in there:
            what = f"the server has no secret {name}. Start it with FLEETUNE_SECRET_{name} in its environment"
            yield QueueError.at("queue.secrets", what)
