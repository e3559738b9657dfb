"""What each tenant has used of the cluster, with a half-life: from the leases alone, so that nothing has to be kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import HOLDS_A_LEASE
from orchestrator.scheduling.table import slots_of

_HALF_LIVES = 10  # use before that counts less than a thousandth


def counts_since_s(now_s: float, half_life_s: float) -> float:
    """Leases that ended before this need not be known."""
    return now_s - _HALF_LIVES * half_life_s


def used_of(leases: Iterable[Lease], now_s: float, half_life_s: float) -> dict[str, float]:
    """Decayed GPU-seconds by tenant; CPU-seconds of gangs without GPUs.

    The integral of what is in use times 2 to the power of -(now - t) / half-life.
    """
    scale = half_life_s / math.log(2.0)
    used: dict[str, float] = {}
    for lease in leases:
        end_s = min(now_s if lease.released_s is None else lease.released_s, now_s)
        if end_s <= lease.granted_s:
            continue
        decayed_s = scale * (2.0 ** ((end_s - now_s) / half_life_s) - 2.0 ** ((lease.granted_s - now_s) / half_life_s))
        used[lease.tenant] = used.get(lease.tenant, 0.0) + slots_of(lease.gang) * decayed_s
    return used


class Shares:
    """The same, carried forward in time."""

    def __init__(self, used_s: Mapping[str, float], at_s: float, half_life_s: float) -> None:
        self._used_s, self._at_s, self._half_life_s = dict(used_s), at_s, half_life_s

    def advance(self, jobs: Iterable[Job], now_s: float) -> Mapping[str, float]:
        """Add what these jobs have held since the last time, to first order within the step."""
        step_s = max(now_s - self._at_s, 0.0)
        for job in jobs:
            if job.state in HOLDS_A_LEASE:
                self._used_s[job.tenant] = self._used_s.get(job.tenant, 0.0) + slots_of(job.gang) * step_s
        factor = 0.5 ** (step_s / self._half_life_s)
        self._used_s = {tenant: used * factor for tenant, used in self._used_s.items()}
        self._at_s = max(self._at_s, now_s)
        return self._used_s
