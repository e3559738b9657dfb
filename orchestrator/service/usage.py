"""What tenants have held, by month: from the leases alone."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from orchestrator.api import Usage, UsageRow
from orchestrator.queue.errors import QueueError
from orchestrator.queue.records import Lease

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)
_HOUR_S = 3600.0


@dataclass
class _Held:
    gpu_s: float = 0.0
    cpu_s: float = 0.0
    jobs: set[str] = field(default_factory=set)


def usage(leases: Iterable[Lease], now_s: float, month: str | None = None, tenant: str | None = None) -> Usage:
    """By month (UTC) and tenant; a lease that is held counts up to now, and one over a month's end to both months.

    Args:
        month: `2026-11`; None: all.

    Raises:
        QueueError: that is no month.
    """
    if month is not None:
        month_begins_s(month)
    found: dict[tuple[str, str], _Held] = {}
    for lease in leases:
        if tenant is not None and lease.tenant != tenant:
            continue
        for name, seconds in _by_month(lease, now_s):
            if month is None or name == month:
                _add(found.setdefault((name, lease.tenant), _Held()), lease, seconds)
    return Usage(
        rows=tuple(
            UsageRow(
                month=name,
                tenant=whose,
                gpu_hours=held.gpu_s / _HOUR_S,
                cpu_hours=held.cpu_s / _HOUR_S,
                jobs=len(held.jobs),
            )
            for (name, whose), held in sorted(found.items())
        )
    )


def month_begins_s(month: str) -> float:
    """Seconds since 1970. Leases that were released before do not count to it. Raises QueueError."""
    match = _MONTH.fullmatch(month)
    if match is None or match[1] == "0000":
        raise QueueError(f"{month[:40]!r} is no month: write it as 2026-11")
    return datetime.datetime(int(match[1]), int(match[2]), 1, tzinfo=datetime.UTC).timestamp()


def _add(held: _Held, lease: Lease, seconds: float) -> None:
    gang = lease.gang
    if gang.gpus_per_worker:
        held.gpu_s += gang.num_workers * gang.gpus_per_worker * seconds
    else:
        held.cpu_s += gang.num_workers * gang.cpus_per_worker * seconds
    held.jobs.add(lease.job_id)


def _by_month(lease: Lease, now_s: float) -> Iterator[tuple[str, float]]:
    """(month, seconds in it), from the grant on. A clock may have gone backwards: then it was no time."""
    end_s = max(now_s if lease.released_s is None else lease.released_s, lease.granted_s)
    begin = _utc(lease.granted_s)
    while True:
        following = _next_month(begin)
        until_s = min(end_s, following.timestamp())
        yield f"{begin:%Y-%m}", until_s - begin.timestamp()
        if until_s >= end_s:
            return
        begin = following


def _utc(at_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC)


def _next_month(at: datetime.datetime) -> datetime.datetime:
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + datetime.timedelta(days=32)).replace(day=1)
