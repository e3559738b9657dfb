"""Retention: old jobs are removed, in small batches after the leader's passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from orchestrator.controller.fair_share import counts_since_s
from orchestrator.queue.months import month_around
from orchestrator.queue.names import submission_of
from orchestrator.service.context.context import ServiceContext

DAY_S: Final = 86_400.0
BATCH: Final = 200  # most jobs in one transaction
_LOOKS_EVERY_S: Final = 60.0


def kept_since_s(now_s: float, retention_days: float, half_life_s: float) -> float:
    """Return the time before which ended jobs are removed.

    Leases of this month and the last one are always kept, and so are those that still count for the tenants' shares.
    """
    begin_s, _ = month_around(now_s)
    last_month_s, _ = month_around(begin_s - 1.0)
    return min(now_s - retention_days * DAY_S, last_month_s, counts_since_s(now_s, half_life_s))


class Retention:
    """Removes at most one batch per call.

    The leader calls it after each pass. Directories of runs are never touched.
    """

    def __init__(self, context: ServiceContext, epoch: Callable[[], int]) -> None:
        """`epoch`: returns the epoch of this server's leadership; raises NotLeader."""
        self._context, self._epoch = context, epoch
        self._next_s = 0.0

    def __call__(self) -> int:
        """Remove a batch if it is time to. Returns the number of removed rows.

        Raises:
            StoreBroken, BackendUnreachable, NotLeader: nothing is lost; the next call goes on.
        """
        days = self._context.retention_days
        if not days or time.monotonic() < self._next_s:
            return 0
        store, now_s = self._context.store, self._context.clock.now_s()
        before_s = kept_since_s(now_s, days, self._context.policy.share_half_life_s)
        found = store.prunable(before_s, BATCH)
        # The backend comes first: while the job exists, its id and the names of its attempts are not given to another
        # job.
        names = [submission_of(job_id, number) for job_id, attempts in found for number in range(1, attempts + 1)]
        if names:
            self._context.backend.discard(names)
        removed = store.prune(self._epoch(), [job_id for job_id, _ in found], before_s)
        if len(found) < BATCH:
            self._next_s = time.monotonic() + _LOOKS_EVERY_S
        return removed
