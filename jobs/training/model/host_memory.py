"""What glibc does with memory of the host that is freed: on a CPU, tensors live there."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # numbers of malloc.h
_LARGEST_THRESHOLD = 32 * 2**20  # bytes; glibc takes no larger M_MMAP_THRESHOLD on 64 bits
# Bytes of a tensor that may stay in the heap. Gaps that larger ones leave there are seldom filled again.
_KEPT_TENSOR = 256 * 2**20


def keeps_all(largest_tensor: int) -> bool:
    """Whether freed memory is kept whatever its size, given the bytes of the largest tensor of a step. Pure."""
    return largest_tensor <= _KEPT_TENSOR


def keep_freed_memory(largest_tensor: int) -> None:
    """Have glibc keep what is freed instead of giving it back to the kernel; elsewhere than on glibc: nothing.

    A step allocates and frees the same tensors again and again. If they are given back each time, they come with a page
    fault for every 4 KiB, hundreds of thousands a step. Where a tensor takes hundreds of megabytes, all large ones are
    given back: kept in the heap they split it, and a worker takes half as much memory again.

    Args:
        largest_tensor: Bytes of the largest tensor of a step.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if keeps_all(largest_tensor):
        mallopt(_M_MMAP_MAX, 0)
    else:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)


def give_back_freed_memory() -> None:
    """Give free memory back to the kernel: after an evaluation or a save, which need more than a step."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
