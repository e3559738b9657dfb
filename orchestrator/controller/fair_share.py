"""GPU time that each tenant has used, with a half-life. It is computed from the leases, so nothing is stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from orchestrator.queue.records import Job
from orchestrator.queue.states import HOLDS_A_LEASE
from orchestrator.scheduling.job_table import slots_of

_HALF_LIVES: Final = 10  # number of half-lives after which use counts less than a thousandth

Span = tuple[str, int, float, float | None]  # tenant, slots, granted_s, released_s


def counts_since_s(now_s: float, half_life_s: float) -> float:
    """Return the time before which ended leases no longer count."""
    return now_s - _HALF_LIVES * half_life_s


def used_of_spans(spans: Iterable[Span], now_s: float, half_life_s: float) -> dict[str, float]:
    """Return decayed GPU-seconds by tenant; CPU-seconds for gangs without GPUs.

    This is the integral over t of the slots in use, times 2 ** (-(now - t) / half-life). A lease is four values,
    because with a million leases, Lease objects would take too long.
    """
    used: dict[str, float] = {}
    for tenant, slots, granted_s, released_s in spans:
        end_s = now_s if released_s is None or released_s > now_s else released_s
        if end_s > granted_s:
            decayed = 2.0 ** ((end_s - now_s) / half_life_s) - 2.0 ** ((granted_s - now_s) / half_life_s)
            used[tenant] = used.get(tenant, 0.0) + slots * decayed
    scale = half_life_s / math.log(2.0)
    return {tenant: scale * decayed for tenant, decayed in used.items()}


class Shares:
    """Decayed use by tenant, carried forward from pass to pass."""

    def __init__(self, used_s: Mapping[str, float], at_s: float, half_life_s: float) -> None:
        self._used_s, self._at_s, self._half_life_s = dict(used_s), at_s, half_life_s
        self._held: Mapping[str, tuple[str, int]] = {}  # job -> tenant and slots of its lease at the last call

    def advance(self, jobs: Iterable[Job], now_s: float) -> Mapping[str, float]:
        """Add what jobs have held since the last call, to first order within the step.

        A lease that ended since the last call counts for the whole step. The error is small, since the controller calls
        right after leases end.
        """
        step_s = max(now_s - self._at_s, 0.0)
        holds = {job.job_id: (job.tenant, slots_of(job.gang)) for job in jobs if job.state in HOLDS_A_LEASE}
        for tenant, slots in {**self._held, **holds}.values():
            self._used_s[tenant] = self._used_s.get(tenant, 0.0) + slots * step_s
        factor = 0.5 ** (step_s / self._half_life_s)
        self._used_s = {tenant: used * factor for tenant, used in self._used_s.items()}
        self._at_s, self._held = max(self._at_s, now_s), holds
        return self._used_s
