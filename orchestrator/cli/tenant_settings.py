"""The settings that `fleetune tenants set` sends: the known ones, overridden by the given options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from cluster.errors import InputError
from jobs.spec.queue import MOST_PRIORITY
from orchestrator.api import QuotaSent, RestrictionsSent, Tenants, TenantSent, TenantView
from orchestrator.cli.options import duration_s
from orchestrator.client.connection import Connection
from orchestrator.queue.errors import TenantChanged
from orchestrator.queue.tenants import DEFAULT_RESTRICTIONS

MOST_GPUS: Final = 1_000_000
_TRIES: Final = 20  # of a change at the same time as others
_QUOTA = re.compile(r"^(?:([^=\s]{1,100})=)?([0-9]{1,7})$")


def put_settings(server: Connection, name: str, change: Callable[[TenantView | None], TenantSent]) -> TenantView:
    """Change a tenant on the server. If somebody else changes it at the same time, both changes count.

    Args:
        change: returns all settings from those now; None: there is no such tenant.

    Raises:
        TenantChanged: others have changed the tenant each time.
    """
    for left in reversed(range(_TRIES)):
        now = next((one for one in server.get("/v1/tenants", Tenants).tenants if one.name == name), None)
        read = {"version": "" if now is None else now.version}
        try:
            return server.put(f"/v1/tenants/{quote(name, safe='')}", TenantView, change(now), read)
        except TenantChanged:
            if not left:
                raise
    raise AssertionError


def settings(
    now: TenantView | None,
    weight: float | None,
    guaranteed: Sequence[str] | None,
    limit: Sequence[str] | None,
    limits: Mapping[str, str | Sequence[str] | None] = MappingProxyType({}),
) -> TenantSent:
    """Merge known and given settings. None: unchanged, or the default of a new tenant.

    Args:
        limits: the options that limit a tenant's jobs, as typed, by restriction; `none`: no limit. Others are ignored.

    Raises:
        InputError: an option is not valid.
    """
    given = {name: typed for name in _OPTIONS if (typed := limits.get(name)) not in (None, ())}
    if weight is not None and not 0.0 < weight <= MOST_GPUS:  # it may be nan or inf
        raise InputError(f"--weight {weight:g} is not a weight: give a number above 0, e.g. 2.5")
    changed = {
        "weight": weight,
        "guaranteed": None if guaranteed is None else quotas("guaranteed", guaranteed),
        "limit": None if limit is None else quotas("limit", limit),
        "restrictions": restrictions(now, given) if given else None,
    }
    known = {} if now is None else now.model_dump(include={"weight", "guaranteed", "limit"})
    return TenantSent.model_validate(known | {name: value for name, value in changed.items() if value is not None})


def restrictions(now: TenantView | None, typed: Mapping[str, str | Sequence[str]]) -> RestrictionsSent:
    """Merge known and given restrictions. Raises InputError."""
    known = asdict(now.restrictions if now is not None else DEFAULT_RESTRICTIONS)
    given: dict[str, Any] = {}
    for name, text in typed.items():
        option, parsed, no_limit = _OPTIONS[name]
        texts = [text] if isinstance(text, str) else text
        given[name] = no_limit if _is_none(option, texts) else text if parsed is None else parsed(option, text)
    try:
        return RestrictionsSent(**{**known, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option, message = _OPTIONS[str(first["loc"][0])][0], first["msg"]
        raise InputError(
            f"{option} {str(first['input'])[:100]!r} is not allowed: {message[:1].lower()}{message[1:]}"
        ) from error


def _is_none(option: str, given: Sequence[str]) -> bool:
    """Whether an option is `none`. Raises InputError: it is also given with other values."""
    is_none = "none" in (one.strip().lower() for one in given)
    if is_none and len(given) > 1:
        raise InputError(f"{option} none excludes other values of {option}: give one of them")
    return is_none


def _number(option: str, text: str, kind: str = "number", parsed: Callable[[str], float] = float) -> float:
    try:
        return parsed(text)
    except ValueError:
        raise InputError(f"{option} {text!r} is neither a {kind} nor none, which removes the limit") from None


_whole = partial(_number, kind="whole number", parsed=int)


# (option, parser, value of `none`) of each restriction. Lists need no parser.
_OPTIONS: Mapping[str, tuple[str, Callable[[str, Any], Any] | None, Any]] = {
    "max_priority": ("--max-priority", _whole, MOST_PRIORITY),
    "max_queued_jobs": ("--max-queued", _whole, None),
    "max_runtime_s": ("--max-runtime", duration_s, None),
    "max_gpu_hours_per_month": ("--max-gpu-hours", _number, None),
    "roots": ("--root", None, None),
    "secrets": ("--secret", None, ()),
}


def quotas(option: str, given: Sequence[str]) -> tuple[QuotaSent, ...]:
    """Parse quotas such as `A100=8` and `16`; `none` alone: no quota. Raises InputError."""
    if _is_none(f"--{option}", given):
        return ()
    found: dict[str | None, int] = {}
    for one in given:
        match = _QUOTA.match(one)
        if match is None or int(match[2]) > MOST_GPUS:
            raise InputError(f"--{option} {one!r} is neither a number of GPUs (16 or A100=8) nor none")
        if match[1] in found:
            raise InputError(f"--{option} is given twice for {match[1] or 'all types together'}")
        found[match[1]] = int(match[2])
    return tuple(QuotaSent(accelerator_type=kind, gpus=gpus) for kind, gpus in found.items())
