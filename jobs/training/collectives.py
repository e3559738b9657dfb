"""Objects that the ranks of a gang send each other. They are pickled, so they are small.

Every rank must call these functions, and in the same order. `group` is a process group of all ranks; None: the default.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def from_rank_0(value: T, group: Any = None) -> T:
    """Return the value of rank 0, which sends it with its call. The values of the other ranks are not used."""
    held = [value]
    dist.broadcast_object_list(held, src=0, group=group)
    return held[0]


def of_all_ranks(value: T, group: Any = None) -> list[T]:
    """Return the values of all ranks, in their order."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def on_rank_0(value: T) -> list[T] | None:
    """Return the values of all ranks, in their order, on rank 0, and None on others."""
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found)
    return found
