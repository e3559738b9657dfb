"""The loss is PyTorch's cross-entropy, and takes next to no memory beyond the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from jobs.data.prepared import IGNORE_INDEX
from jobs.training.loop.loss import loss_sum
from tests.support.tensormemory import peak_bytes

Head = Callable[[torch.Tensor], torch.Tensor]
VOCABULARY = 1000


def plain(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="sum")


def computed(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the gradient of the hidden states."""
    hidden = hidden.detach().requires_grad_()
    value = loss(head(hidden), targets)
    (value * factor).backward()
    assert hidden.grad is not None
    return value.detach(), hidden.grad


def head_weight() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(VOCABULARY, 16)


HEADS: dict[str, Head] = {
    "linear": lambda hidden: hidden @ head_weight().T,
    "softcapping": lambda hidden: torch.tanh(hidden @ head_weight().T / 30) * 30,
    # These save their own result for the backward pass: to overwrite it would spoil the gradient.
    "ends in tanh": lambda hidden: torch.tanh(hidden @ head_weight().T),
    "ends in exp": lambda hidden: (hidden @ head_weight().T / 10).exp(),
    "selected columns": lambda hidden: (hidden @ head_weight().T)[:, torch.arange(hidden.shape[1])],
    "view of a larger tensor": lambda hidden: (hidden @ head_weight().repeat(2, 1).T)[..., :VOCABULARY],
    "not contiguous": lambda hidden: (head_weight() @ hidden.transpose(1, 2)).transpose(1, 2),
    "bf16": lambda hidden: hidden.bfloat16() @ head_weight().bfloat16().T,
    "fp16": lambda hidden: hidden.half() @ head_weight().half().T,
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("factor", [1.0, 0.37, 512.0])
def test_loss_and_gradient_are_those_of_plain_pytorch(kind: str, factor: float) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 30, 16, generator=draw)
    targets = torch.randint(VOCABULARY, (3, 30), generator=draw)
    targets[0, :7] = targets[2] = IGNORE_INDEX
    loss, gradient = computed(loss_sum, HEADS[kind], hidden, targets, factor)
    expected, expected_gradient = computed(plain, HEADS[kind], hidden, targets, factor)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6 * float(expected_gradient.abs().max()))


def test_classes_of_rows_have_the_loss_of_plain_pytorch() -> None:
    draw = torch.Generator().manual_seed(1)
    hidden, targets = torch.randn(9, 16, generator=draw), torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, IGNORE_INDEX])
    for name in ("linear", "ends in tanh"):
        found = computed(loss_sum, HEADS[name], hidden, targets, 0.5)
        torch.testing.assert_close(found, computed(plain, HEADS[name], hidden, targets, 0.5), rtol=1e-6, atol=1e-6)


def test_no_target_gives_a_loss_and_a_gradient_of_zero() -> None:
    targets = torch.full((1, 4), IGNORE_INDEX)
    loss, gradient = computed(loss_sum, HEADS["linear"], torch.randn(1, 4, 16), targets, 1.0)
    assert float(loss) == 0.0 and not gradient.any()


def test_logits_that_are_not_finite_give_a_loss_that_is_not() -> None:
    logits = torch.zeros(1, 3, VOCABULARY)
    logits[0, 1, 5] = float("nan")
    assert loss_sum(logits, torch.ones(1, 3, dtype=torch.int64)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", [False, True])
def test_loss_takes_few_bytes_a_logit(dtype: torch.dtype, saved: bool) -> None:
    """Counts all tensors of the loss's forward and backward pass at their peak, beyond the logits themselves.

    The gradient is written over the logits; the fp32 copies of a piece remain. Logits that the function before has
    saved cannot be overwritten: then the gradient takes its own bytes.
    """
    logits = torch.zeros(2, 256, 4096, dtype=dtype, requires_grad=True)
    targets = torch.ones(2, 256, dtype=torch.int64)

    def work() -> None:
        returned = torch.tanh(logits) if saved else logits * 1.0
        torch.autograd.grad(loss_sum(returned, targets), returned)

    beyond = peak_bytes(work) / logits.numel() - dtype.itemsize
    assert 0 < beyond <= (dtype.itemsize if saved else 0) + 0.8
