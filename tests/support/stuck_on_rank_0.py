"""A module that rank 1 cannot import, while rank 0 hangs as in a collective of NCCL that nobody else joins."""

import threading

import torch.distributed as dist

if dist.is_initialized():
    if dist.get_rank() == 1:
        raise ImportError("only here")
    threading.Event().wait(600)


def zero(given: object) -> float:
    return 0.0
