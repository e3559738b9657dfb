"""What each tenant has used of the cluster, with a half-life: from the leases alone, so that nothing has to be kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import HOLDS_A_LEASE
from orchestrator.scheduling.table import slots_of

_HALF_LIVES: Final = 10  # use before that counts less than a thousandth
_SLICES: Final = 100  # of a half-life: within one, the weight of use changes by 0.7 %


class Edge(NamedTuple):
    """Slots that a tenant began to hold (more than 0) or ceased to hold (less than 0) in a slice of time.

    Attributes:
        slice: whole part of age / slice_s, so the newest is 0.
        slots: GPUs, or CPUs of gangs without GPUs.
        slots_s: the sum of slots times age.
    """

    tenant: str
    slice: int
    slots: int
    slots_s: float


def counts_since_s(now_s: float, half_life_s: float) -> float:
    """Leases that ended before this need not be known."""
    return now_s - _HALF_LIVES * half_life_s


def slice_s(half_life_s: float) -> int:
    return max(round(half_life_s / _SLICES), 1)


def used_of_edges(edges: Iterable[Edge], half_life_s: float) -> dict[str, float]:
    """Nearly what `used_of` says of the leases that these edges are made of: no tenant's use differs by 0.7 % or more.

    How much a tenant has used in each slice is exact. All of that has the mean weight of the slice.
    """
    by_tenant: dict[str, dict[int, tuple[float, float]]] = {}
    for tenant, number, slots, slots_s in edges:
        slices = by_tenant.setdefault(tenant, {})
        before = slices.get(number, (0.0, 0.0))
        slices[number] = (before[0] + slots, before[1] + slots_s)
    return {tenant: _used_of_slices(slices, half_life_s) for tenant, slices in by_tenant.items()}


def _used_of_slices(slices: Mapping[int, tuple[float, float]], half_life_s: float) -> float:
    width_s = slice_s(half_life_s)

    def weight_s(older: int, newer: int) -> float:
        """Of one slot that is held from the older edge of a slice to the newer edge of another."""
        newer_end, older_end = (math.exp2(-number * width_s / half_life_s) for number in (newer, older + 1))
        return half_life_s / math.log(2.0) * (newer_end - older_end)

    used = held = 0.0
    oldest_first = sorted(slices, reverse=True)
    for number, following in itertools.zip_longest(oldest_first, oldest_first[1:], fillvalue=-1):
        slots, slots_s = slices[number]
        in_slice_s = held * width_s + slots_s - slots * number * width_s
        used += in_slice_s / width_s * weight_s(number, number)
        held += slots
        if following < number - 1:  # nothing begins or ends in between
            used += held * weight_s(number - 1, following + 1)
    return used


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
