"""Decides whether ranks compute slower than the others. Pure.

The duration of a step does not show this, because every rank waits for the slowest one in each collective. So there are
speed tests: all ranks compute the same small piece of work at the same time, without waiting for each other
(`jobs.training.speed_watch`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

from jobs.run.remedies import RemedyReport

REMEDY: Final = "straggler"  # as in `jobs.spec.remedies`
ENOUGH: Final = 5  # consecutive speed tests in which a rank must be slow, because other programs come and go
SLOWER: Final = 1.5  # times the usual rank's time; for the noise of the tests, see decision 41
_HAS_ITS_CORE: Final = 0.8  # share of the time; a thread that has its core for less shares it with others
_OWN: Final = 0.5  # of the time without a core; if the worker's other threads compute for longer, they are the cause
_REPEATED: Final = 6  # times that a host must be found slow, or five minutes, because programs of others come and go


@dataclass(frozen=True)
class Timing:
    """One rank's time for the work of a speed test.

    Attributes:
        host_s: seconds of the work on one core of the host; NaN if it failed.
        core_s: of these, the seconds in which the thread had a core.
        gpu_s: seconds of the work on the GPU; None without a GPU, NaN if it failed.
        own_s: CPU time that other threads of the worker used meanwhile.
    """

    host_s: float
    core_s: float
    gpu_s: float | None = None
    own_s: float = 0.0


class Place(NamedTuple):
    """Where a rank computes.

    Attributes:
        node: see `WorkerContext`.
        processor: its model; "" if it is not known.
    """

    node: str
    host: str
    processor: str


class Cause(StrEnum):
    """Why a rank is slow. The values are texts for people."""

    GPU = "the GPU is slow: throttled, broken, or used by another program too"
    CORES = "other programs use the cores there"
    THREADS = "other threads of the worker use the cores there"
    PROCESSOR = "the processor is slow"


# Times that a rank must be found slow before its node is named as faulty. A job's own threads do not make it faulty.
FAULTY_AFTER: Final = {Cause.GPU: 1, Cause.CORES: _REPEATED, Cause.PROCESSOR: _REPEATED}


@dataclass(frozen=True)
class Slow:
    """A rank that was slow in all of the newest speed tests.

    Attributes:
        times: its median time, in units of the usual rank's.
        core_share: share of the time in which its thread had a core.
    """

    rank: int
    times: float
    cause: Cause
    core_share: float

    @property
    def key(self) -> tuple[int, Cause]:
        return self.rank, self.cause


def slow_ranks(tests: Sequence[Sequence[Timing]], enough: int = ENOUGH) -> list[Slow]:
    """Return the ranks that were slow in all of the newest speed tests, the lowest first.

    The usual time of a test is the lower median over all ranks. So a whole node is found too, if it has at most half of
    the ranks. If more than half of the ranks are slow, they are taken for the usual ones.

    A GPU is blamed only if the host is not slow, because a host without free cores is late to give it work. The
    processor of a worker with a GPU is not blamed.

    Args:
        tests: oldest first, each with one timing for each rank.
        enough: number of newest tests.
    """
    newest = tests[-enough:]
    if len(newest) < enough:
        return []
    found: dict[int, Slow] = {}
    for rank, times in _slow_in_all([[timing.gpu_s for timing in test] for test in newest]).items():
        found[rank] = Slow(rank, times, Cause.GPU, _core_share(newest, rank))
    has_gpu = newest[-1][0].gpu_s is not None
    for rank, times in _slow_in_all([[timing.host_s for timing in test] for test in newest]).items():
        share = _core_share(newest, rank)
        if share < _HAS_ITS_CORE:
            found[rank] = Slow(rank, times, _who_uses_the_cores(newest, rank), share)
        elif not has_gpu:
            found[rank] = Slow(rank, times, Cause.PROCESSOR, share)
    return sorted(found.values(), key=lambda one: one.rank)


def _who_uses_the_cores(tests: Sequence[Sequence[Timing]], rank: int) -> Cause:
    its = [test[rank] for test in tests]
    own = median(one.own_s / max(one.host_s - one.core_s, 1e-9) for one in its)
    return Cause.THREADS if own >= _OWN else Cause.CORES


def is_machine_at_fault(one: Slow, slow: Sequence[Slow], places: Sequence[Place]) -> bool:
    """Whether a machine is to blame for a slow rank.

    Processors differ between hosts. So a slow processor is to blame only if a rank that is not slow has the same model.

    Args:
        places: of all ranks.
    """
    others = {place.processor for rank, place in enumerate(places) if rank not in {other.rank for other in slow}}
    return one.cause is not Cause.PROCESSOR or places[one.rank].processor in others - {""}


def _core_share(tests: Sequence[Sequence[Timing]], rank: int) -> float:
    return median(test[rank].core_s / max(test[rank].host_s, 1e-9) for test in tests)


def _slow_in_all(tests: Sequence[Sequence[float | None]]) -> dict[int, float]:
    """Return how many times slower ranks are, for those that are slow in every test."""
    ratios = []
    for times in tests:
        known = [seconds for seconds in times if seconds is not None and math.isfinite(seconds)]
        if len(known) < len(times):
            return {}
        usual = max(sorted(known)[(len(known) - 1) // 2], 1e-9)
        ratios.append([seconds / usual for seconds in known])
    by_rank = {rank: [test[rank] for test in ratios] for rank in range(len(ratios[0]))}
    return {rank: median(its) for rank, its in by_rank.items() if min(its) >= SLOWER}


def report_of(ranks: Sequence[Slow], host: str) -> RemedyReport:
    """Describe ranks of one host that are slow for the same cause."""
    worst = max(ranks, key=lambda one: one.times)
    numbers = ", ".join(str(one.rank) for one in ranks)
    who = f"rank {numbers} on host {host} computes" if len(ranks) == 1 else f"ranks {numbers} on host {host} compute"
    why = worst.cause.value
    if worst.cause in (Cause.CORES, Cause.THREADS):
        why += f", and the thread that trains has one for {min(one.core_share for one in ranks):.0%} of the time"
    advice = {
        Cause.GPU: f"look at clocks, temperatures and processes of the GPUs on host {host} (nvidia-smi -q)",
        Cause.CORES: f"look at what else runs on host {host}, or use a host with free cores",
        Cause.THREADS: f"look at what else the workers on host {host} do, or give them more CPUs",
        Cause.PROCESSOR: f"leave host {host} out, or use equal hosts",
    }
    return RemedyReport(
        REMEDY,
        f"{who} {worst.times:.1f} times slower than the usual rank, in {ENOUGH} consecutive speed tests: {why}",
        "the node is named as faulty" if worst.cause is Cause.GPU else "the cause is named, and nothing is changed",
        "every step takes as long as on the slowest rank",
        advice[worst.cause],
    )
