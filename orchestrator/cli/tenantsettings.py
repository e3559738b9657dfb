"""What `fleetune tenants set` sends: what is known of a tenant, with what was given in its place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from jobs.errors import InputError
from orchestrator.api import QuotaSent, QuotaView, TenantSent, TenantView

MOST_GPUS: Final = 1_000_000
_QUOTA = re.compile(r"^(?:([^=\s]{1,100})=)?([0-9]{1,7})$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")


def settings(
    now: TenantView | None, weight: float | None, guaranteed: Sequence[str] | None, limit: Sequence[str] | None
) -> TenantSent:
    """None: as it is, or as a new one has it. Raises InputError."""
    if weight is None:
        weight = 1.0 if now is None else now.weight
    if not (math.isfinite(weight) and 0.0 < weight <= MOST_GPUS):
        raise InputError(f"--weight {weight:g} is no share: give a number above 0, as 1 or 2.5")
    as_now = (_kept(now.guaranteed), _kept(now.limit)) if now is not None else ((), ())
    return TenantSent(
        weight=weight,
        guaranteed=as_now[0] if guaranteed is None else quotas("guaranteed", guaranteed),
        limit=as_now[1] if limit is None else quotas("limit", limit),
    )


def check_name(name: str) -> str:
    """Raises InputError."""
    if not _NAME.match(name):
        raise InputError(f"{name!r} cannot be a tenant's name: letters, digits, '.', '_', '@' and '-', up to 100")
    return name


def quotas(option: str, given: Sequence[str]) -> tuple[QuotaSent, ...]:
    """Out of `A100=8` and `16`; `none` alone is no quota. Raises InputError."""
    if [one.lower() for one in given] == ["none"]:
        return ()
    found: dict[str | None, int] = {}
    for one in given:
        match = _QUOTA.match(one)
        if match is None or int(match[2]) > MOST_GPUS:
            raise InputError(f"--{option} {one!r} is neither a number of GPUs, as 16 or A100=8 are, nor none")
        if match[1] in found:
            raise InputError(f"--{option} is given twice for {match[1] or 'all types together'}")
        found[match[1]] = int(match[2])
    return tuple(QuotaSent(accelerator_type=kind, gpus=gpus) for kind, gpus in found.items())


def _kept(views: Sequence[QuotaView]) -> tuple[QuotaSent, ...]:
    return tuple(QuotaSent(accelerator_type=one.accelerator_type, gpus=one.gpus) for one in views)
