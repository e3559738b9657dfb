"""What tenants have held, by month: from the leases alone."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.api import Usage
from orchestrator.queue.records import Lease


def usage(leases: Iterable[Lease], now_s: float, month: str | None = None, tenant: str | None = None) -> Usage:
    """By month (UTC) and tenant; a lease that is held counts up to now, and one over a month's end to both months.

    Args:
        month: `2026-11`; None: all.

    Raises:
        QueueError: that is no month.
    """
    raise NotImplementedError
