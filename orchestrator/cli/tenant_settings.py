"""The settings that `fleetune tenants set` sends: the known ones, overridden by the given options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from jobs.errors import InputError
from jobs.spec.queue import MOST_PRIORITY
from orchestrator.api import QuotaSent, QuotaView, RestrictionsSent, RestrictionsView, TenantSent, TenantView
from orchestrator.cli.durations import duration_s

MOST_GPUS: Final = 1_000_000
_QUOTA = re.compile(r"^(?:([^=\s]{1,100})=)?([0-9]{1,7})$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")


@dataclass(frozen=True)
class Asked:
    """The options that limit a tenant's jobs, as typed. None: unchanged; `none`: no limit."""

    max_priority: str | None = None
    max_queued: str | None = None
    max_runtime: str | None = None
    max_gpu_hours: str | None = None
    root: Sequence[str] | None = None
    secret: Sequence[str] | None = None


def settings(
    now: TenantView | None,
    weight: float | None,
    guaranteed: Sequence[str] | None,
    limit: Sequence[str] | None,
    asked: Asked = Asked(),
) -> TenantSent:
    """Merge known and given settings. None: unchanged, or the default of a new tenant. Raises InputError."""
    if weight is None:
        weight = 1.0 if now is None else now.weight
    if not (math.isfinite(weight) and 0.0 < weight <= MOST_GPUS):
        raise InputError(f"--weight {weight:g} is not a weight: give a number above 0, e.g. 2.5")
    as_now = (_kept(now.guaranteed), _kept(now.limit)) if now is not None else ((), ())
    return TenantSent(
        weight=weight,
        guaranteed=as_now[0] if guaranteed is None else quotas("guaranteed", guaranteed),
        limit=as_now[1] if limit is None else quotas("limit", limit),
        restrictions=None if asked == Asked() else restrictions(now, asked),
    )


def restrictions(now: TenantView | None, asked: Asked) -> RestrictionsSent:
    """Merge known and given restrictions. Raises InputError."""
    known = (now.restrictions if now is not None else RestrictionsView()).model_dump()
    given: Mapping[str, Any] = {
        "max_priority": _number("--max-priority", asked.max_priority, MOST_PRIORITY),
        "max_queued_jobs": _number("--max-queued", asked.max_queued, None),
        "max_runtime_s": _LEFT if asked.max_runtime is None else _runtime_s(asked.max_runtime),
        "max_gpu_hours_per_month": _number("--max-gpu-hours", asked.max_gpu_hours, None, whole=False),
        "roots": _listed(asked.root, None),
        "secrets": _listed(asked.secret, ()),
    }
    try:
        return RestrictionsSent(**{**known, **{name: one for name, one in given.items() if one is not _LEFT}})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        option = _OPTIONS[name]
        raise InputError(f"{option} {str(first['input'])[:100]!r} is not allowed: {_lower(first['msg'])}") from error


_LEFT: Final = object()
_OPTIONS: Final[Mapping[str, str]] = {
    "max_priority": "--max-priority",
    "max_queued_jobs": "--max-queued",
    "max_runtime_s": "--max-runtime",
    "max_gpu_hours_per_month": "--max-gpu-hours",
    "roots": "--root",
    "secrets": "--secret",
}


def _number(option: str, text: str | None, no_limit: int | None, whole: bool = True) -> Any:
    if text is None:
        return _LEFT
    if text.strip().lower() == "none":
        return no_limit
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "whole number" if whole else "number"
        raise InputError(f"{option} {text!r} is neither a {kind} nor none, which takes the limit away") from None


def _runtime_s(text: str) -> float | None:
    return None if text.strip().lower() == "none" else duration_s("--max-runtime", text)


def _listed(given: Sequence[str] | None, nothing: Any) -> Any:
    if given is None:
        return _LEFT
    return nothing if [one.lower() for one in given] == ["none"] else tuple(given)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def check_name(name: str) -> str:
    """Check the name of a tenant. Raises InputError."""
    if not _NAME.match(name):
        raise InputError(f"{name!r} cannot be a tenant's name: letters, digits, '.', '_', '@' and '-', up to 100")
    return name


def quotas(option: str, given: Sequence[str]) -> tuple[QuotaSent, ...]:
    """Parse quotas such as `A100=8` and `16`; `none` alone: no quota. Raises InputError."""
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
