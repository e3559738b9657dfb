"""Memory of the host goes back to the kernel when nothing needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cluster.local.memory import resident_bytes
from jobs.run.checkpoints import KINDS
from jobs.training.checkpoint.host_copy import HostCopy, mapped_bytes
from jobs.training.model.host_memory import giving_back_growth, keep_freed_memory, keeps_all
from tests.support.gangs import ROOT

NUMEL = 5 * 2**20 + 3
MIB = 2**20


def test_pinned_memory_is_unpinned_before_it_is_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed: CUDA's calls are recorded."""
    pinned: set[int] = set()

    def register(address: int, size: int, flags: int) -> int:
        pinned.add(address)
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=pinned.remove)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    flat = SimpleNamespace(device=torch.device("cuda"), numel=lambda: 1000)
    copy = HostCopy(cast(Any, SimpleNamespace(flats=(flat,), pieces=())))
    assert pinned == {one.data_ptr() for flats in copy.flats.values() for one in flats} and len(pinned) > 1
    del copy
    assert not pinned


@pytest.mark.parametrize("case", ["host_copy_takes_memory_only_while_it_holds_a_state", "growth_goes_back_at_once"])
def test_memory_goes_back(case: str) -> None:
    """In a process of its own: others' threads and their memory come and go in this one."""
    own = f"from tests.integration.jobs.training.test_host_memory import {case} as run; run()"
    done = subprocess.run([sys.executable, "-c", own], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def host_copy_takes_memory_only_while_it_holds_a_state() -> None:
    flat = torch.arange(NUMEL, dtype=torch.float32)
    state: dict[str, tuple[torch.Tensor, ...]] = dict.fromkeys(KINDS, (flat,))
    size = len(KINDS) * flat.numel() * 4
    before = resident_bytes()
    copy = HostCopy(cast(Any, SimpleNamespace(flats=(flat,), pieces=())))
    assert resident_bytes() - before < size // 10
    for _ in range(2):  # what was given back can be used again
        copy.take(state)
        assert all(torch.equal(copy.flats[kind][0], flat) for kind in KINDS)
        assert resident_bytes() - before > size * 9 // 10
        copy.release()
        assert resident_bytes() - before < size // 10
        assert not copy.flats[KINDS[0]][0].any()


def growth_goes_back_at_once() -> None:
    """A step frees memory that the next one uses; an evaluation that needs no more leaves it, a larger one does not."""
    keep_freed_memory(largest_tensor=64 * MIB)
    before = resident_bytes()
    ones(128 * MIB)
    after_step = resident_bytes()
    assert after_step - before > 120 * MIB
    with giving_back_growth():
        ones(64 * MIB)
    assert resident_bytes() >= after_step
    with giving_back_growth():
        ones(512 * MIB)
    assert resident_bytes() - before < 32 * MIB


def ones(size: int) -> None:
    """Touch memory of `size` bytes, and free it."""
    torch.ones(size, dtype=torch.uint8)


@pytest.mark.parametrize("numel", [0, 1, 1024, 1025, 1_075_000_000])
def test_mapped_memory_is_rounded_up_to_pages_only(numel: int) -> None:
    """1.075 billion elements, 4.3 GB, would take 8.6 GB as a pinned allocation of PyTorch's."""
    size = mapped_bytes(numel)
    assert 4 * numel <= size <= 4 * numel + max(4096, os.sysconf("SC_PAGESIZE")) and size > 0


def test_large_tensors_are_not_kept_in_the_heap() -> None:
    assert keeps_all(49_152 * 576 * 4) and not keeps_all(262_144 * 640 * 4)
