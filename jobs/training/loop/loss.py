"""Cross-entropy that needs little memory beyond the logits that the model returned.

PyTorch's cross-entropy keeps fp32 copies of all logits, 12 to 14 bytes for each: 13 GB for 8 thousand targets and a
vocabulary of 128 thousand. This function processes a few targets at a time. Its backward pass
computes the gradient from the logits and overwrites them with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from jobs.data.prepared import IGNORE_INDEX
from jobs.planning.memory import piece_of_loss


def loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropy over the targets: a scalar, fp32. Without targets, it and its gradient are 0.

    The backward pass may overwrite `logits` with their gradient: do not read them afterwards.

    Args:
        logits: (rows, columns, vocabulary) or (rows, classes), any floating dtype, any strides.
        targets: (rows, columns) or (rows,) int64; IGNORE_INDEX marks places without a target.
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
        # Overwriting is safe only if no other tensor shares the memory. The function that made the logits may have
        # saved them for its backward pass (tanh does), and a view shares the memory of a larger tensor.
        gradient = logits if _holders(logits) == _HOLDERS_OF_ONE else torch.empty_like(logits)
        for piece, wanted, out in _pieces(logits, targets, gradient):
            scale = torch.where(wanted == IGNORE_INDEX, 0.0, factor.float()).unsqueeze(-1)
            slope = torch.log_softmax(piece, -1, dtype=torch.float32).exp_().mul_(scale)
            slope.scatter_add_(-1, _index(wanted), -scale)
            out.copy_(slope)
        return gradient, None


def _index(wanted: torch.Tensor) -> torch.Tensor:
    """Return the indices of the targets in the vocabulary, shape (..., 1); 0 if there is no target."""
    return wanted.clamp(min=0).unsqueeze(-1)


def _pieces(
    logits: torch.Tensor, targets: torch.Tensor, out: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield matching views of a few targets. A piece never spans two rows, so it is a view for any strides."""
    if targets.dim() == 1:
        logits, targets, out = logits.unsqueeze(0), targets.unsqueeze(0), out.unsqueeze(0)
    vocabulary = logits.shape[-1]
    length = piece_of_loss(vocabulary, vocabulary * targets.numel()) // vocabulary
    for row in range(targets.shape[0]):
        for start in range(0, targets.shape[1], length):
            part = slice(start, start + length)
            yield logits[row, part], targets[row, part], out[row, part]


def _holders(tensor: torch.Tensor) -> int:
    """Count the tensors that share the memory, including those that the autograd graph has saved."""
    storage = tensor.untyped_storage()
    count: int = torch._C._storage_Use_Count(storage._cdata)
    return count


_HOLDERS_OF_ONE = _holders(torch.empty(1))
