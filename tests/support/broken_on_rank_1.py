"""A module that one rank cannot import, as when a file is missing on one machine."""

import torch.distributed as dist

if dist.is_initialized() and dist.get_rank() == 1:
    raise ImportError("only here")


def zero(given: object) -> float:
    return 0.0
