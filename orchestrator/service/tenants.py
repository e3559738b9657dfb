"""Tenants: their settings, and what they have in the queue."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from orchestrator.api import QuotaSent, QuotaView, RestrictionsSent, Tenants, TenantSent, TenantView
from orchestrator.queue.errors import QueueError, TenantChanged
from orchestrator.queue.records import Lease, QueueEvent
from orchestrator.queue.states import HOLDS_A_LEASE, State
from orchestrator.queue.store import Filter
from orchestrator.queue.tenants import DEFAULT_RESTRICTIONS, Quota, Restrictions, Tenant, check_name
from orchestrator.service.context.caller import ANYBODY
from orchestrator.service.context.context import ServiceContext

TENANT: Final = "tenant"  # kind of the events about tenants
_SCHEME = re.compile(r"(?!file$)[a-z][a-z0-9+.-]{0,20}")
_ACTIVE = (State.QUEUED, *sorted(HOLDS_A_LEASE))


def tenants(context: ServiceContext) -> Tenants:
    """Return all tenants. Raises StoreBroken."""
    found, leases = context.store.tenants(), context.store.leases(held=True)
    hours = context.usage_months.gpu_hours(found)
    return Tenants(tenants=tuple(_view(context, one, leases, hours) for one in found))


def put(
    context: ServiceContext, name: str, sent: TenantSent, by: str = ANYBODY.name, version: str | None = None
) -> TenantView:
    """Create or change a tenant, with an event.

    Guarantees may exceed the present cluster, since machines come and go.

    Args:
        version: of the settings that the caller has read; "": the tenant did not exist; None: the caller has read none.

    Raises:
        TenantChanged: the tenant has other settings now.
        QueueError: a setting is not valid.
    """
    check_name(name)
    store, now_s = context.store, context.clock.now_s()
    given = None if sent.restrictions is None else _restrictions(sent.restrictions)
    quotas = _quota("guaranteed", sent.guaranteed), _quota("limit", sent.limit)

    def change(before: Tenant | None) -> Tenant:
        if version is not None and version != _version(before):
            raise TenantChanged(f"tenant {name!r} was changed meanwhile: read its settings, and send yours again")
        kept = DEFAULT_RESTRICTIONS if before is None else before.restrictions
        tenant = Tenant(name, sent.weight, *quotas, kept if given is None else given)
        _check(tenant)
        return tenant

    before, tenant = store.change_tenant(name, change, now_s)
    if (said := _changes(before, tenant)) is not None:
        told = f"{by} {'makes' if before is None else 'changes'} tenant {name}{f': {said}' if said else ''}"
        store.add_events([QueueEvent(now_s, TENANT, told, data={"tenant": name, "by": by})])
    return _view(context, tenant, store.leases(held=True), context.usage_months.gpu_hours([tenant]))


def _version(tenant: Tenant | None) -> str:
    """Return a digest of all settings; "": there is no such tenant."""
    if tenant is None:
        return ""
    return hashlib.sha256(json.dumps(asdict(tenant), sort_keys=True).encode()).hexdigest()[:16]


def _restrictions(sent: RestrictionsSent) -> Restrictions:
    """Validate restrictions. Raises QueueError."""
    given = sent.model_dump(exclude={"roots", "secrets"})
    roots = None if sent.roots is None else tuple(dict.fromkeys(map(checked_root, sent.roots)))
    return Restrictions(**given, roots=roots, secrets=tuple(dict.fromkeys(sent.secrets)))


def checked_root(root: str) -> str:
    """Return a valid root without a trailing slash. Raises QueueError."""
    scheme, url, path = root.partition("://")
    if "::" in root or not root.isprintable() or ".." in root.split("/"):
        wrong = "write it without '::', '..' and characters that cannot be seen"
    elif url and (not _SCHEME.fullmatch(scheme) or not path.strip("/") or path.startswith("/")):
        wrong = "give a path, as /shared/vision, or a URL with its bucket or host, as s3://bucket/vision"
    elif not url and not root.startswith("/"):
        wrong = "give an absolute path, as /shared/vision, or a URL, as s3://bucket/vision"
    else:
        return root.rstrip("/") or "/"
    raise QueueError(f"{root[:200]!r} cannot be a root: {wrong}")


def _changes(before: Tenant | None, after: Tenant) -> str | None:
    """Describe the changed settings; None: nothing has changed."""
    if before == after:
        return None
    old, new = _settings(before or Tenant(after.name)), _settings(after)
    return "; ".join(f"{name} {_told(old[name])} -> {_told(now)}" for name, now in new.items() if old[name] != now)


def _settings(tenant: Tenant) -> dict[str, object]:
    settings = {"weight": tenant.weight, "guaranteed": tenant.guaranteed, "limit": tenant.limit}
    return settings | asdict(tenant.restrictions)


def _told(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"{one[0] or 'all'}={one[1]}" if isinstance(one, tuple) else str(one) for one in value)
    return f"{value:,g}" if isinstance(value, float) else str(value)


def _quota(what: str, sent: Sequence[QuotaSent]) -> Quota:
    """Validate a quota. Raises QueueError."""
    kinds = [one.accelerator_type for one in sent]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise QueueError(f"{what} names {_of(kind)} twice: give each type once")
    return tuple((one.accelerator_type, one.gpus) for one in sent)


def _check(tenant: Tenant) -> None:
    """Check that guarantees do not exceed limits. Raises QueueError."""
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


def _view(context: ServiceContext, tenant: Tenant, leases: Sequence[Lease], hours: Mapping[str, float]) -> TenantView:
    restrictions = tenant.restrictions
    counts = context.store.count(Filter(tenant=tenant.name, states=_ACTIVE))
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
        restrictions=restrictions,
        version=_version(tenant),
        gpu_hours=None if restrictions.max_gpu_hours_per_month is None else hours.get(tenant.name, 0.0),
    )


def _shown(quota: Quota) -> tuple[QuotaView, ...]:
    return tuple(QuotaView(accelerator_type=kind, gpus=gpus) for kind, gpus in quota)
