"""Compares how fast the ranks of a gang compute, every ten seconds. `jobs.remedies.straggler` has the rules."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from jobs.remedies.hang import Doing
from jobs.remedies.straggler import (
    ENOUGH,
    FAULTY_AFTER,
    Cause,
    Place,
    Slow,
    Timing,
    is_machine_at_fault,
    report_of,
    slow_ranks,
)
from jobs.training.collectives import of_all_ranks
from jobs.training.rank_states import frames_of_loop
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
        self._times: Counter[tuple[int, Cause]] = Counter()
        self._stacks = ""  # of this process during a step, if it may be slow

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
        if slow:
            self._tests.clear()  # to be found again, a rank must be slow in as many new tests
            self._times.update(one.key for one in slow)
            self._tell(slow, step)
        elif self._worker.rank in {one.rank for one in slow_ranks(list(self._tests), ENOUGH - 1)}:
            timer = threading.Timer(EVERY_S / 2, self._take_stacks)
            timer.daemon = True
            timer.start()

    def _gathered(self, timing: Timing) -> list[Timing]:
        gpu_s = math.nan if timing.gpu_s is None else timing.gpu_s
        device, on_gpu = self._worker.device, timing.gpu_s is not None
        mine = torch.tensor([timing.host_s, timing.core_s, gpu_s, timing.own_s], dtype=torch.float64, device=device)
        every = [torch.empty_like(mine) for _ in range(self._worker.world_size)]
        dist.all_gather(every, mine)
        found = torch.stack(every).tolist()
        return [Timing(host_s, core_s, gpu_s if on_gpu else None, own_s) for host_s, core_s, gpu_s, own_s in found]

    def _take_stacks(self) -> None:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._stacks = file.read()

    def _tell(self, slow: list[Slow], step: int) -> None:
        """Name slow ranks the first time, and their nodes as faulty if they are slow repeatedly."""
        new = [one for one in slow if self._times[one.key] == 1]
        if self._stacks and self._worker.rank in {one.rank for one in new}:
            print(f"\nThis rank is slow. Its threads, some seconds ago:\n{self._stacks}", file=sys.stderr, flush=True)
        mine = Place(self._worker.node, os.uname().nodename, _processor())
        places, stacks = zip(*of_all_ranks((mine, frames_of_loop(self._stacks))), strict=True)
        alike: dict[tuple[Place, Cause], list[Slow]] = defaultdict(list)
        for one in new:
            alike[places[one.rank], one.cause].append(one)
        for (place, _), ranks in alike.items():
            stack = list(stacks[ranks[0].rank])
            report = report_of(ranks, place.host)
            report.tell(
                self._reporter.event, step=step, host=place.host, ranks=[one.rank for one in ranks], stack=stack
            )
        due = [one for one in slow if self._times[one.key] == FAULTY_AFTER.get(one.cause)]
        faulty = {places[one.rank]: one for one in due if is_machine_at_fault(one, slow, places)}
        for place, one in faulty.items():
            tests = self._times[one.key] * ENOUGH
            said = f"host {place.host} was slower than others of this run in {tests} speed tests: {one.cause.value}"
            self._reporter.event("faulty", f"{said}. Look at that machine", nodes=[place.node], host=place.host)


def _processor() -> str:
    """Return the model of this host's processor; "" if it is not known."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return ""


def timing_of(device: torch.device, dtype: torch.dtype) -> Timing:
    """Do the work of a speed test on this process's host and GPU. `dtype`: of the products on the GPU."""
    host = _on_one_core()
    return host if device.type == "cpu" else replace(host, gpu_s=_on_gpu(device, dtype))


@torch.no_grad()
def _on_one_core() -> Timing:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the time of other threads is not known
    try:
        left = torch.ones((_HOST_SIZE, _HOST_SIZE))
        product = left @ left  # the first one loads and chooses a kernel
        began_s, began_core_s, began_all_s = time.perf_counter(), time.thread_time(), time.process_time()
        for _ in range(_HOST_TIMES):
            torch.mm(left, left, out=product)
        host_s, core_s, all_s = time.perf_counter(), time.thread_time(), time.process_time()
        return Timing(host_s - began_s, core_s - began_core_s, own_s=all_s - began_all_s - (core_s - began_core_s))
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
