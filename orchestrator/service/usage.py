"""Usage of tenants by month."""

from __future__ import annotations

import datetime
import functools
import math
import re
import threading
import time
from collections.abc import Iterable
from typing import Final

from orchestrator.api import MONTH, Usage, UsageRow
from orchestrator.queue.clock import Clock
from orchestrator.queue.errors import QueueError
from orchestrator.queue.months import MonthTotal, month_around, month_of, utc
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant

_HOUR_S = 3600.0


NEWEST_MONTHS: Final = 12  # without a month in the request
_FRESH_S: Final = 60.0
_MONTHS_KEPT: Final = 120


def rows_of(totals: Iterable[MonthTotal]) -> tuple[UsageRow, ...]:
    return tuple(
        UsageRow(month=month, tenant=tenant, gpu_hours=gpu_s / _HOUR_S, cpu_hours=cpu_s / _HOUR_S, jobs=jobs)
        for month, tenant, gpu_s, cpu_s, jobs in totals
    )


def month_begins_s(month: str) -> float:
    """Return the begin of a month in seconds since 1970. Raises QueueError if it is not a month."""
    if not re.fullmatch(MONTH, month) or month.startswith("0000"):
        raise QueueError(f"{month[:40]!r} is no month: write it as 2026-11")
    return datetime.datetime(int(month[:4]), int(month[5:]), 1, tzinfo=datetime.UTC).timestamp()


class UsageMonths:
    """Usage by month, computed once, since a month may have a million leases. Thread-safe.

    A lease that spans the end of a month counts in both months, and its job once in each. Past months do not change and
    are kept. The current month is computed again after a minute.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()  # one thread reads, the others wait for the result
        self._over = functools.lru_cache(_MONTHS_KEPT)(self._read)
        self._running: tuple[str, tuple[UsageRow, ...]] = ("", ())
        self._until_s = -math.inf

    def usage(self, month: str | None = None, tenant: str | None = None) -> Usage:
        """Return usage by month (UTC) and tenant; without a month, of the newest twelve.

        Raises QueueError, StoreBroken.
        """
        if month is not None:
            month_begins_s(month)
        now_s = self._clock.now_s()
        names = [month] if month is not None else newest_months(now_s)
        with self._lock:
            rows = [row for name in sorted(names) for row in self._of(name, now_s)]
        return Usage(rows=tuple(row for row in rows if tenant is None or row.tenant == tenant))

    def gpu_hours(self, tenants: Iterable[Tenant]) -> dict[str, float]:
        """Return GPU-hours of the current month by tenant, up to a minute old; empty if none of `tenants` has a limit.

        Raises StoreBroken.
        """
        if all(one.restrictions.max_gpu_hours_per_month is None for one in tenants):
            return {}
        now_s = self._clock.now_s()
        with self._lock:
            return {row.tenant: row.gpu_hours for row in self._of(month_of(now_s), now_s)}

    def _of(self, month: str, now_s: float) -> tuple[UsageRow, ...]:
        begin_s = month_begins_s(month)
        if begin_s > now_s:  # the end of the last month of year 9999 is no date
            return ()
        if now_s >= month_around(begin_s)[1]:
            return self._over(begin_s)
        if month != self._running[0] or time.monotonic() >= self._until_s:
            self._running, self._until_s = (month, self._read(begin_s)), time.monotonic() + _FRESH_S
        return self._running[1]

    def _read(self, begin_s: float) -> tuple[UsageRow, ...]:
        return rows_of(self._store.month_totals(begin_s, self._clock.now_s()))


def newest_months(now_s: float) -> list[str]:
    """Return the current month, as `2026-11`, and those before it."""
    at = utc(now_s)
    numbers = (at.year * 12 + at.month - 1 - back for back in range(NEWEST_MONTHS))
    return [f"{number // 12:04}-{number % 12 + 1:02}" for number in numbers]
