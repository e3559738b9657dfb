"""How much memory tensors take while a function runs, counted by PyTorch's own CPU allocator."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that were alive at once during the call, beyond those alive before it.

    The allocator reports every allocation and every release, those inside operators too. The same work gives the
    same number.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    recorded = profile.profiler.kineto_results.events()
    alive = most = 0
    for event in sorted((one for one in recorded if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most
