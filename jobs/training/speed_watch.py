"""Compares how fast the ranks of a gang compute, every ten seconds. `jobs.remedies.straggler` has the rules."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from typing import Any, Final

import torch
import torch.distributed as dist

from jobs.remedies.straggler import ENOUGH, Slow, Timing, report_of, slow_ranks
from jobs.training.reporter import Reporter
from jobs.training.worker_context import WorkerContext

EVERY_S: Final = 10.0
# The work: products of square matrices. 40 ms with one core, some 2 ms on an H100.
_HOST_SIZE, _HOST_TIMES = 384, 20
_GPU_SIZE, _GPU_TIMES = 2048, 50


class SpeedWatch:
    """The probes of one run. Rank 0 says when one is due; then every rank must call `probe` after the same step."""

    def __init__(self, worker: WorkerContext, reporter: Reporter, dtype: torch.dtype, enabled: bool = True) -> None:
        """`dtype`: of the products on the GPU."""
        self._worker, self._reporter, self._dtype = worker, reporter, dtype
        self._decides = enabled and worker.world_size > 1 and worker.rank == 0
        self._last_s = time.monotonic()
        self._probes: deque[list[Timing]] = deque(maxlen=ENOUGH)
        self._told: set[int] = set()

    @property
    def is_due(self) -> bool:
        """Always false on all ranks but the first."""
        return self._decides and time.monotonic() - self._last_s >= EVERY_S

    def probe(self, step: int) -> None:
        """Time the work on every rank, and report ranks that are slow again and again. Every rank must call it."""
        self._last_s = time.monotonic()
        self._probes.append(self._gathered(timing_of(self._worker.device, self._dtype)))
        slow = slow_ranks(list(self._probes))
        if new := [one for one in slow if one.rank not in self._told]:
            self._told |= {one.rank for one in new}
            self._tell(new, step)

    def _gathered(self, timing: Timing) -> list[Timing]:
        gpu_s = math.nan if timing.gpu_s is None else timing.gpu_s
        device, on_gpu = self._worker.device, timing.gpu_s is not None
        mine = torch.tensor([timing.host_s, timing.core_s, gpu_s], dtype=torch.float64, device=device)
        every = [torch.empty_like(mine) for _ in range(self._worker.world_size)]
        dist.all_gather(every, mine)
        return [
            Timing(host_s, core_s, gpu_s if on_gpu else None)
            for host_s, core_s, gpu_s in map(torch.Tensor.tolist, every)
        ]

    def _tell(self, slow: list[Slow], step: int) -> None:
        places: list[Any] = [None] * self._worker.world_size
        dist.all_gather_object(places, (self._worker.node, os.uname().nodename))
        by_place: dict[tuple[str, str], list[Slow]] = defaultdict(list)
        for one in slow:
            by_place[places[one.rank]].append(one)
        for (node, host), ranks in by_place.items():
            broken = not all(one.lacks_a_core for one in ranks)
            report = report_of(ranks, host, broken)
            report.tell(self._reporter.event, step=step, host=host, ranks=[one.rank for one in ranks])
            if broken:
                said = f"host {host} is slower than the others of this run. Look at that machine"
                self._reporter.event("faulty", said, nodes=[node], host=host)


def timing_of(device: torch.device, dtype: torch.dtype) -> Timing:
    """Do the work of a probe on this process's host and GPU. `dtype`: of the products on the GPU."""
    host_s, core_s = _products(torch.device("cpu"), torch.float32, _HOST_SIZE, _HOST_TIMES)
    gpu_s = None if device.type == "cpu" else _products(device, dtype, _GPU_SIZE, _GPU_TIMES)[0]
    return Timing(host_s, core_s, gpu_s)


@torch.no_grad()
def _products(device: torch.device, dtype: torch.dtype, size: int, times: int) -> tuple[float, float]:
    """Return the seconds that the products take, and those in which this thread had a core; NaN if memory lacks."""
    try:
        left = torch.ones((size, size), dtype=dtype, device=device)
        product = left @ left  # the first one loads and chooses a kernel
        _wait(device)
        began_s, began_core_s = time.perf_counter(), time.thread_time()
        for _ in range(times):
            torch.mm(left, left, out=product)
        _wait(device)
    except torch.OutOfMemoryError:
        return math.nan, math.nan
    return time.perf_counter() - began_s, time.thread_time() - began_core_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
