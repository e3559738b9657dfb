"""Decides whether ranks compute slower than the others. Pure.

In a step this cannot be seen: every rank waits for the slowest one in each collective, so all take equally long. So all
ranks now and then compute the same small piece of work at the same time, without waiting for each other
(`jobs.training.speed_watch`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from jobs.run.remedies import RemedyReport

REMEDY: Final = "straggler"  # as in `jobs.spec.remedies`
ENOUGH: Final = 5  # consecutive probes in which a rank must be slow; other programs use a core for a time only
SLOWER: Final = 1.5  # times as slow as the usual rank. Throttled GPUs and shared cores lose half of their speed or more
_HAS_ITS_CORE: Final = 0.8  # least share of the time in which a thread computes that nothing else wants the core of


@dataclass(frozen=True)
class Timing:
    """One rank's time for the work of a probe.

    Attributes:
        host_s: seconds of the work on the host's cores; NaN if it failed.
        core_s: of these, the seconds in which the thread had a core.
        gpu_s: seconds of the work on the GPU; None without a GPU, NaN if it failed.
    """

    host_s: float
    core_s: float
    gpu_s: float | None = None


@dataclass(frozen=True)
class Slow:
    """A rank that was slow in all of the newest probes.

    Attributes:
        times: its median time, in units of the usual rank's.
        on_gpu: its GPU is slow; else a core of its host.
        core_share: share of the time in which its thread had a core.
    """

    rank: int
    times: float
    on_gpu: bool
    core_share: float

    @property
    def lacks_a_core(self) -> bool:
        """Whether other programs of its host are the cause, and not its hardware."""
        return not self.on_gpu and self.core_share < _HAS_ITS_CORE


def slow_ranks(probes: Sequence[Sequence[Timing]]) -> list[Slow]:
    """Return the ranks that were slow in all of the newest probes, the lowest first.

    The usual time of a probe is the lower median over all ranks. So a whole node may be slow, if it has at most half of
    the ranks; where more than half are slow, nothing tells them from ranks that have the speed of their hardware.

    Args:
        probes: oldest first, each with one timing for each rank.
    """
    newest = probes[-ENOUGH:]
    if len(newest) < ENOUGH:
        return []
    found: dict[int, Slow] = {}
    for on_gpu in (False, True):  # where both are slow, the GPU is what training needs
        seconds = [[timing.gpu_s if on_gpu else timing.host_s for timing in probe] for probe in newest]
        for rank, times in _slow_in_all(seconds).items():
            shares = [probe[rank].core_s / max(probe[rank].host_s, 1e-9) for probe in newest]
            found[rank] = Slow(rank, times, on_gpu, median(shares))
    return sorted(found.values(), key=lambda one: one.rank)


def _slow_in_all(probes: Sequence[Sequence[float | None]]) -> dict[int, float]:
    """Return how many times slower ranks are, for those that are slow in every probe."""
    ratios = []
    for times in probes:
        known = [seconds for seconds in times if seconds is not None and math.isfinite(seconds)]
        if len(known) < len(times):
            return {}
        usual = max(sorted(known)[(len(known) - 1) // 2], 1e-9)
        ratios.append([seconds / usual for seconds in known])
    by_rank = {rank: [probe[rank] for probe in ratios] for rank in range(len(ratios[0]))}
    return {rank: median(its) for rank, its in by_rank.items() if min(its) >= SLOWER}


def report_of(ranks: Sequence[Slow], host: str, told: bool) -> RemedyReport:
    """Describe slow ranks of one host. `told`: their node is reported to the queue, if there is one."""
    worst = max(ranks, key=lambda one: one.times)
    numbers = ", ".join(str(one.rank) for one in ranks)
    who = f"{'rank' if len(ranks) == 1 else 'ranks'} {numbers} on host {host}"
    if worst.lacks_a_core:
        share = min(one.core_share for one in ranks)
        why = f"other programs use the cores there, and the thread that trains has one for {share:.0%} of the time"
        advice = f"look at what else runs on host {host}, or use a host with free cores"
    else:
        why = f"the {'GPU' if worst.on_gpu else 'processor'} itself is slow"
        advice = f"look at the clock and the temperature of the {'GPU' if worst.on_gpu else 'processor'} on host {host}"
    verb = "computes" if len(ranks) == 1 else "compute"
    cause = f"{who} {verb} {worst.times:.1f} times slower than the usual rank, in {ENOUGH} consecutive probes: {why}"
    return RemedyReport(
        REMEDY,
        cause,
        "the node is named as faulty" if told else "none, because the machine is not at fault",
        "every step takes as long as on the slowest rank",
        advice,
    )
