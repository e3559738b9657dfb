"""Cross-entropy that takes no memory for the vocabulary beyond the logits that the model returned.

PyTorch's cross-entropy keeps fp32 copies of all logits: 12 to 14 bytes for each. With a vocabulary of 128 thousand and
8 thousand targets, these are 13 GB. This function works on a few targets at a time. Its backward pass
computes the gradient from the logits and writes it over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from jobs.data.prepared import IGNORE_INDEX

# Most logits of a piece: enough to keep a GPU busy, while the fp32 copies of a piece take 64 MiB each.
_MAX_PIECE = 2**24
_MIN_PIECES = 16  # so that the fp32 copies of a piece take less than a byte for each of all logits


def loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the targets, in fp32; 0 with a gradient of 0 where there is none. A scalar.

    The backward pass may overwrite `logits` with their gradient: read nothing from them afterwards.

    Args:
        logits: (rows, columns, vocabulary) or (rows, classes), any floating dtype, any strides.
        targets: (rows, columns) or (rows,) int64; IGNORE_INDEX is no target.
    """
    loss: torch.Tensor = _CrossEntropySum.apply(logits, targets)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropySum(torch.autograd.Function):
    """Computes what `functional.cross_entropy(logits.float(), targets, reduction="sum")` computes."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, targets)
        losses = torch.zeros(targets.shape, dtype=torch.float32, device=logits.device)
        for piece, wanted, loss in _pieces(logits, targets, losses):
            chosen = torch.log_softmax(piece, -1, dtype=torch.float32).gather(-1, _index(wanted)).squeeze(-1)
            loss.copy_(torch.where(wanted == IGNORE_INDEX, 0.0, -chosen))
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets = ctx.saved_tensors
        # The function that made the logits may have saved them for its own backward pass (tanh does), and a view shares
        # the memory of a larger tensor.
        gradient = logits if _held_by_nobody_else(logits) else torch.empty_like(logits)
        for piece, wanted, out in _pieces(logits, targets, gradient):
            scale = torch.where(wanted == IGNORE_INDEX, 0.0, factor.float()).unsqueeze(-1)
            slope = torch.log_softmax(piece, -1, dtype=torch.float32).exp_().mul_(scale)
            slope.scatter_add_(-1, _index(wanted), -scale)
            out.copy_(slope)
        return gradient, None


def _index(wanted: torch.Tensor) -> torch.Tensor:
    """(..., 1) places of the targets in the vocabulary; 0 where there is no target."""
    return wanted.clamp(min=0).unsqueeze(-1)


def _pieces(
    logits: torch.Tensor, targets: torch.Tensor, out: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Views of a few targets of each tensor; a piece never spans two rows, so that no strides stand in the way."""
    if targets.dim() == 1:
        logits, targets, out = logits.unsqueeze(0), targets.unsqueeze(0), out.unsqueeze(0)
    length = piece_length(logits.shape[-1], targets.numel())
    for row in range(targets.shape[0]):
        for start in range(0, targets.shape[1], length):
            part = slice(start, start + length)
            yield logits[row, part], targets[row, part], out[row, part]


def piece_length(vocabulary: int, num_targets: int) -> int:
    """Targets of a piece. Pure."""
    return max(1, min(_MAX_PIECE, vocabulary * num_targets // _MIN_PIECES) // max(vocabulary, 1))


def _held_by_nobody_else(tensor: torch.Tensor) -> bool:
    """Whether no other tensor, nor a saved one of the autograd graph, shares the memory."""
    return _holders(tensor) == _HOLDERS_OF_ONE


def _holders(tensor: torch.Tensor) -> int:
    storage = tensor.untyped_storage()
    count: int = torch._C._storage_Use_Count(storage._cdata)
    return count


_HOLDERS_OF_ONE = _holders(torch.empty(1))
