"""Measures how fast the cores of this machine compute and copy, for plans of jobs on CPUs."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import torch

_SIDE = 768  # of the multiplied matrices: large enough for the full speed of a core
_COPIED = 1 << 24  # elements, 64 MiB: more than the caches of most machines
_ROUNDS = 3


def cpu_speed(cores: int) -> tuple[float, float]:
    """Return FLOP/s of fp32 matrix products, and bytes/s of copies (read and written), with this many threads."""
    one, other, product = (torch.rand(_SIDE, _SIDE) for _ in range(3))
    source, target = torch.rand(_COPIED), torch.empty(_COPIED)
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        multiplied_s = _fastest_s(lambda: torch.mm(one, other, out=product))
        copied_s = _fastest_s(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(before)
    return 2 * _SIDE**3 / multiplied_s, 2 * source.nbytes / copied_s


def _fastest_s(work: Callable[[], object]) -> float:
    work()  # the first round touches new memory
    return min(timeit.repeat(work, number=1, repeat=_ROUNDS))
