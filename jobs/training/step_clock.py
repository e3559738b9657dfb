"""Measures a training step, and how much of it the kernel spends on memory that a process touches for the first time.

The first steps of a worker without GPU touch most of its memory for the first time. The kernel has to clear each page,
and the host of a virtual machine has to find it: seconds for a gigabyte, which no later step takes.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Final

from cluster.local.memory import resident_bytes

# Most seconds for one page. 11 µs were measured on a virtual machine whose host had not given the page before, 1.6 µs
# where it had.
_OF_A_PAGE_S: Final = 20e-6


@dataclass(frozen=True)
class Usage:
    """What the kernel has counted for this process so far.

    Attributes:
        kernel_s: seconds in the kernel, of all threads. Threads that receive from other workers touch pages too.
        faults: page faults that needed no disk.
        resident_bytes: memory that the process holds.
    """

    kernel_s: float
    faults: int
    resident_bytes: int

    @classmethod
    def now(cls) -> Usage:
        counted = resource.getrusage(resource.RUSAGE_SELF)
        return cls(counted.ru_stime, counted.ru_minflt, resident_bytes())


def first_touch_s(before: Usage, after: Usage, threads: int = 1) -> float:
    """Return the seconds in which a process has gained pages that it keeps. Pure.

    The time in the kernel is taken as that of page faults; of these, as many count as the process has gained pages.

    Args:
        threads: that compute, and touch memory at the same time.
    """
    gained = max(after.resident_bytes - before.resident_bytes, 0) / resource.getpagesize()
    share = min(gained / max(after.faults - before.faults, 1), 1.0)
    return min(share * (after.kernel_s - before.kernel_s), gained * _OF_A_PAGE_S) / threads


class StepClock:
    """Measures one step after another."""

    def __init__(self, threads: int) -> None:
        """`threads`: see `first_touch_s`."""
        self._threads = threads
        self.start()

    def start(self) -> None:
        self._began, self._before = time.perf_counter(), Usage.now()

    def read(self) -> tuple[float, float]:
        """Return the seconds since `start`, and those of them for memory touched for the first time.

        The kernel's clock and that of the process differ by up to a tick, and threads that wait for other workers touch
        memory too: the second figure is never more than the first.
        """
        took_s = time.perf_counter() - self._began
        return took_s, min(first_touch_s(self._before, Usage.now(), self._threads), took_s)
