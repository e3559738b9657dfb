"""Compares how fast the ranks of a gang compute, every ten seconds. `jobs.remedies.straggler` has the rules."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from typing import Final

import torch
import torch.distributed as dist

from jobs.remedies.hang import Doing
from jobs.remedies.straggler import ENOUGH, Cause, Slow, Timing, report_of, slow_ranks
from jobs.training.collectives import of_all_ranks
from jobs.training.reporter import Reporter
from jobs.training.worker_context import WorkerContext

EVERY_S: Final = 10.0
# The work: products of square matrices. 30 ms on one core; on a GPU so large that starting them takes no time.
_HOST_SIZE, _HOST_TIMES = 384, 20
_GPU_SIZE, _GPU_TIMES = 4096, 10


class SpeedWatch:
    """The speed tests of a run. Rank 0 says when one is due. Every rank must call `compare` after the same step."""

    def __init__(self, worker: WorkerContext, reporter: Reporter, dtype: torch.dtype, enabled: bool = True) -> None:
        """`dtype`: of the products on the GPU."""
        self._worker, self._reporter, self._dtype = worker, reporter, dtype
        self._decides = enabled and worker.world_size > 1 and worker.rank == 0
        self._last_s = time.monotonic()
        self._tests: deque[list[Timing]] = deque(maxlen=ENOUGH)
        self._told: set[tuple[int, Cause]] = set()

    @property
    def is_due(self) -> bool:
        """Always false on all ranks but the first."""
        return self._decides and time.monotonic() - self._last_s >= EVERY_S

    def compare(self, step: int) -> None:
        """Time the work on every rank, and report ranks that are slow again and again. Every rank must call it."""
        self._last_s = time.monotonic()
        self._worker.mark(Doing.STEP)  # a rank that hangs here is noticed as in a step
        self._tests.append(self._gathered(timing_of(self._worker.device, self._dtype)))
        self._worker.mark(Doing.OTHER)
        slow = slow_ranks(list(self._tests))
        if new := [one for one in slow if one.key not in self._told]:
            self._told |= {one.key for one in new}
            self._tell(new, step)

    def _gathered(self, timing: Timing) -> list[Timing]:
        gpu_s = math.nan if timing.gpu_s is None else timing.gpu_s
        device, on_gpu = self._worker.device, timing.gpu_s is not None
        mine = torch.tensor([timing.host_s, timing.core_s, gpu_s], dtype=torch.float64, device=device)
        every = [torch.empty_like(mine) for _ in range(self._worker.world_size)]
        dist.all_gather(every, mine)
        found = torch.stack(every).tolist()
        return [Timing(host_s, core_s, gpu_s if on_gpu else None) for host_s, core_s, gpu_s in found]

    def _tell(self, slow: list[Slow], step: int) -> None:
        places = of_all_ranks((self._worker.node, os.uname().nodename))
        alike: dict[tuple[str, str, Cause], list[Slow]] = defaultdict(list)
        for one in slow:
            alike[(*places[one.rank], one.cause)].append(one)
        for (node, host, cause), ranks in alike.items():
            report = report_of(ranks, host)
            report.tell(self._reporter.event, step=step, host=host, ranks=[one.rank for one in ranks])
            if cause is Cause.GPU:
                said = f"a GPU of host {host} is slower than the others of this run. Look at that machine"
                self._reporter.event("faulty", said, nodes=[node], host=host)


def timing_of(device: torch.device, dtype: torch.dtype) -> Timing:
    """Do the work of a speed test on this process's host and GPU. `dtype`: of the products on the GPU."""
    host_s, core_s = _on_one_core()
    return Timing(host_s, core_s, None if device.type == "cpu" else _on_gpu(device, dtype))


@torch.no_grad()
def _on_one_core() -> tuple[float, float]:
    """Return the seconds that the products take, and those in which this thread had a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the time of other threads is not known
    try:
        left = torch.ones((_HOST_SIZE, _HOST_SIZE))
        product = left @ left  # the first one loads and chooses a kernel
        began_s, began_core_s = time.perf_counter(), time.thread_time()
        for _ in range(_HOST_TIMES):
            torch.mm(left, left, out=product)
        return time.perf_counter() - began_s, time.thread_time() - began_core_s
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _on_gpu(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds between the first and the last product on the GPU; NaN if memory lacks."""
    try:
        left = torch.ones((_GPU_SIZE, _GPU_SIZE), dtype=dtype, device=device)
        product = left @ left
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        for _ in range(_GPU_TIMES):
            torch.mm(left, left, out=product)
        ended.record()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return math.nan
    return float(began.elapsed_time(ended)) / 1e3
