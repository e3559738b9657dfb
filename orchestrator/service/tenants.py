"""Who shares the cluster: their settings, and what they have in the queue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.api import QuotaSent, QuotaView, Tenants, TenantSent, TenantView
from orchestrator.queue.errors import QueueError
from orchestrator.queue.records import Lease
from orchestrator.queue.states import HOLDS_A_LEASE, State
from orchestrator.queue.store import Filter
from orchestrator.scheduling.snapshot import Quota, Tenant
from orchestrator.service.surroundings import Surroundings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ACTIVE = (State.QUEUED, *sorted(HOLDS_A_LEASE))


def tenants(surroundings: Surroundings) -> Tenants:
    """All of them. Raises StoreBroken."""
    leases = surroundings.store.leases(held=True)
    return Tenants(tenants=tuple(_view(surroundings, one, leases) for one in surroundings.store.tenants()))


def put(surroundings: Surroundings, name: str, sent: TenantSent) -> TenantView:
    """Make or change one. May promise more than the cluster has: machines come and go. Raises QueueError."""
    if not _NAME.fullmatch(name):
        raise QueueError(
            f"{name[:100]!r} is no name for a tenant: letters, digits, '.', '_' and '-', at most 100, and a letter or "
            "a digit first"
        )
    tenant = Tenant(name, sent.weight, _quota("guaranteed", sent.guaranteed), _quota("limit", sent.limit))
    _check(tenant)
    surroundings.store.put_tenant(tenant, surroundings.clock.now_s())
    return _view(surroundings, tenant, surroundings.store.leases(held=True))


def _quota(what: str, sent: Sequence[QuotaSent]) -> Quota:
    """Raises QueueError."""
    kinds = [one.accelerator_type for one in sent]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise QueueError(f"{what} names {_of(kind)} twice: give each type once")
    return tuple((one.accelerator_type, one.gpus) for one in sent)


def _check(tenant: Tenant) -> None:
    """A guarantee that the limit does not let the tenant have is a mistake. Raises QueueError."""
    guaranteed, limits = dict(tenant.guaranteed), dict(tenant.limit)
    for kind, most in limits.items():
        least = guaranteed.get(kind, 0) if kind is not None else sum(guaranteed.values())
        if most < least:
            raise QueueError(
                f"tenant {tenant.name!r} is guaranteed {least} of {_of(kind)}, and its limit is {most}: raise the "
                "limit, or lower the guarantee"
            )


def _of(kind: str | None) -> str:
    return "GPUs of all types" if kind is None else f"{kind} GPUs"


def _view(surroundings: Surroundings, tenant: Tenant, leases: Sequence[Lease]) -> TenantView:
    counts = surroundings.store.count(Filter(tenant=tenant.name, states=_ACTIVE))
    return TenantView(
        name=tenant.name,
        weight=tenant.weight,
        guaranteed=_shown(tenant.guaranteed),
        limit=_shown(tenant.limit),
        running=sum(counts.get(state, 0) for state in HOLDS_A_LEASE),
        queued=counts.get(State.QUEUED, 0),
        gpus=sum(
            lease.gang.num_workers * lease.gang.gpus_per_worker for lease in leases if lease.tenant == tenant.name
        ),
    )


def _shown(quota: Quota) -> tuple[QuotaView, ...]:
    return tuple(QuotaView(accelerator_type=kind, gpus=gpus) for kind, gpus in quota)
