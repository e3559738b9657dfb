"""What each tenant has used of the cluster, with a half-life: from the leases alone, so that nothing has to be kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import HOLDS_A_LEASE
from orchestrator.scheduling.job_table import slots_of

_HALF_LIVES: Final = 10  # use before that counts less than a thousandth

Span = tuple[str, int, float, float | None]  # tenant, slots, granted_s, released_s


def counts_since_s(now_s: float, half_life_s: float) -> float:
    """Leases that ended before this need not be known."""
    return now_s - _HALF_LIVES * half_life_s


def used_of(leases: Iterable[Lease], now_s: float, half_life_s: float) -> dict[str, float]:
    """Decayed GPU-seconds by tenant; CPU-seconds of gangs without GPUs.

    The integral of what is in use times 2 to the power of -(now - t) / half-life.
    """
    spans = ((lease.tenant, slots_of(lease.gang), lease.granted_s, lease.released_s) for lease in leases)
    return used_of_spans(spans, now_s, half_life_s)


def used_of_spans(spans: Iterable[Span], now_s: float, half_life_s: float) -> dict[str, float]:
    """The same of the four values that count: to make a million leases takes a server too long."""
    used: dict[str, float] = {}
    for tenant, slots, granted_s, released_s in spans:
        end_s = now_s if released_s is None or released_s > now_s else released_s
        if end_s > granted_s:
            decayed = 2.0 ** ((end_s - now_s) / half_life_s) - 2.0 ** ((granted_s - now_s) / half_life_s)
            used[tenant] = used.get(tenant, 0.0) + slots * decayed
    scale = half_life_s / math.log(2.0)
    return {tenant: scale * decayed for tenant, decayed in used.items()}


class Shares:
    """The same, carried forward in time."""

    def __init__(self, used_s: Mapping[str, float], at_s: float, half_life_s: float) -> None:
        self._used_s, self._at_s, self._half_life_s = dict(used_s), at_s, half_life_s
        self._held: Mapping[str, tuple[str, int]] = {}  # by job: tenant and slots of the leases at the last call

    def advance(self, jobs: Iterable[Job], now_s: float) -> Mapping[str, float]:
        """Add what jobs have held since the last call, to first order within the step.

        A lease that has ended since then counts for the whole step: the controller calls right after it gives leases
        back.
        """
        step_s = max(now_s - self._at_s, 0.0)
        holds = {job.job_id: (job.tenant, slots_of(job.gang)) for job in jobs if job.state in HOLDS_A_LEASE}
        for tenant, slots in {**self._held, **holds}.values():
            self._used_s[tenant] = self._used_s.get(tenant, 0.0) + slots * step_s
        factor = 0.5 ** (step_s / self._half_life_s)
        self._used_s = {tenant: used * factor for tenant, used in self._used_s.items()}
        self._at_s, self._held = max(self._at_s, now_s), holds
        return self._used_s
