"""Lets a model compute the activations of its layers again in the backward pass, also if its embeddings are frozen."""

from __future__ import annotations

import warnings
from typing import Any

import torch


def checkpoint_activations(model: Any) -> None:
    """Let the model's layers compute their activations again in the backward pass."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it has another name in transformers 6
        # Re-entrant, because the other form compares shapes of parameters after ZeRO-3 has sharded them again.
        model.gradient_checkpointing_enable({"use_reentrant": True})
    _require_gradients_of_inputs(model)


def _require_gradients_of_inputs(model: Any) -> None:
    """Let embeddings, which are frozen, return tensors that need a gradient.

    Otherwise the input of the first recomputed layer needs no gradient, and no layer gets one. The hooks of
    transformers find no embeddings in CANINE, and make models fail that add positions in place, such as GIT.
    """
    model.disable_input_require_grads()
    found = {one for module in model.modules() if isinstance(one := _input_embeddings(module), torch.nn.Module)}
    embeddings = found or [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    for embedding in embeddings:
        embedding.register_forward_hook(_needing_gradient)


def _input_embeddings(module: torch.nn.Module) -> Any:
    """Return the module that embeds tokens; None: there is none, or several, as in CANINE."""
    find: Any = getattr(module, "get_input_embeddings", None)
    try:
        return None if find is None else find()
    except NotImplementedError:
        return None


def _needing_gradient(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
    is_constant = isinstance(output, torch.Tensor) and output.is_floating_point() and not output.requires_grad
    if not is_constant or not torch.is_grad_enabled():
        return output
    anchor = torch.empty(0, device=output.device, requires_grad=True)
    return _NeedsGradient.apply(output, anchor)  # type: ignore[no-untyped-call]


class _NeedsGradient(torch.autograd.Function):
    """Returns its first input as a result that needs a gradient because of the second one."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:
        return None, None
