"""Controls whether glibc keeps freed host memory, which matters on CPUs because tensors live there."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

from cluster.local.memory import resident_bytes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # option numbers from malloc.h
_LARGEST_THRESHOLD = 32 * 2**20  # bytes; glibc accepts no larger M_MMAP_THRESHOLD on 64-bit machines
# Largest tensor, in bytes, that may stay in the heap. Gaps that larger tensors leave are seldom filled again.
_KEPT_TENSOR = 256 * 2**20
_GREW = 1.02  # growth of the resident set by which memory is given back after an evaluation


def keeps_all(largest_tensor: int) -> bool:
    """Whether freed memory of any size is kept, given the bytes of the largest tensor of a step. Pure."""
    return largest_tensor <= _KEPT_TENSOR


def keep_freed_memory(largest_tensor: int) -> None:
    """Make glibc keep freed memory instead of returning it to the kernel; without glibc, do nothing.

    Every step allocates and frees the same tensors. If their memory is returned each time, the next step has a page
    fault for every 4 KiB, hundreds of thousands in all. If a tensor takes hundreds of megabytes, all large tensors are
    returned: in the heap they would fragment it, and a worker would take half as much memory again.

    Args:
        largest_tensor: bytes of the largest tensor of a step.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if keeps_all(largest_tensor):
        mallopt(_M_MMAP_MAX, 0)
    else:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)


@contextlib.contextmanager
def giving_back_growth() -> Iterator[None]:
    """Return free memory to the kernel afterwards, if the work inside made this process larger.

    If it did not, the next step needs the same memory, and would have a page fault for every 4 KiB of it.
    """
    before = resident_bytes()
    yield
    if resident_bytes() > _GREW * before:
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Return all free memory to the kernel."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
