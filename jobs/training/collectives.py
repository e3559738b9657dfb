"""Sends objects between the ranks of a gang, and lets ranks wait for a rank that works alone.

Every rank must call these functions, and in the same order. `group` is a process group of all ranks; None: the patient
group, or the default group if no patient one was made. In the patient group, ranks may wait for hours, as while one
rank writes a model to slow storage or runs a user's function. It uses gloo, so objects do not pass through GPU memory.
"""

from __future__ import annotations

import datetime
from typing import Any, Final, TypeVar

import torch.distributed as dist

T = TypeVar("T")
PATIENCE: Final = datetime.timedelta(hours=6)
_patient: Any = None  # the patient group; None: it was not made


def make_patient_group() -> Any:
    """Make the patient group, and return it. Every rank must call it once the default group exists."""
    global _patient
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _patient


def wait_for_all() -> None:
    """Return once every rank has called it."""
    dist.barrier(group=_patient)


def from_rank_0(value: T, group: Any = None) -> T:
    """Return the value of rank 0, which sends it with its call. The values of the other ranks are not used."""
    held = [value]
    dist.broadcast_object_list(held, src=0, group=group or _patient)
    return held[0]


def of_all_ranks(value: T, group: Any = None) -> list[T]:
    """Return the values of all ranks, in their order."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group or _patient)
    return found


def on_rank_0(value: T) -> list[T] | None:
    """Return the values of all ranks, in their order, on rank 0, and None on others."""
    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found, group=_patient)
    return found
