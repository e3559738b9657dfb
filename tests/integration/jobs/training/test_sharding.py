"""Which models ZeRO-3 can shard while they are loaded, and that it gathers the experts of a layer together."""

from __future__ import annotations

import pathlib
import weakref
from typing import Any

import pytest
import torch
import transformers

from bench.zoo.tiny import tiny_config
from jobs.training.model.sharding import free_gathered_experts, gathered_together, loads_in_shards
from tests.support import tiny


@pytest.mark.parametrize(
    ("model_type", "in_shards"),
    [("llama", True), ("qwen3_moe", True), ("marian", False), ("blt", False), ("lara_mini", False)],
)
def test_a_type_that_looks_at_shapes_while_it_is_loaded_is_found(
    tmp_path: pathlib.Path, model_type: str, in_shards: bool
) -> None:
    """Marian makes its positions, Blt its weights from the shapes of parameters; LaraMini splits a fused one."""
    tiny_config(model_type).save_pretrained(tmp_path)
    assert loads_in_shards(tiny.spec_of(tmp_path, tmp_path, tmp_path / "text"), str(tmp_path)) is in_shards


@pytest.mark.parametrize(("model_type", "layers"), [("qwen3_moe", [0, 1]), ("jetmoe", []), ("llama", [])])
def test_the_experts_of_a_layer_are_gathered_together(model_type: str, layers: list[int]) -> None:
    """Without the router, which DeepSpeed would add for Qwen3-MoE."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils import get_z3_leaf_modules
    from deepspeed.utils.z3_leaf_module import apply_zero_leaf_module_config

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(model_type))
    apply_zero_leaf_module_config(model, DeepSpeedZeroConfig(**gathered_together(model)).leaf_module)
    experts = [model.get_submodule(f"model.layers.{layer}.mlp.experts") for layer in layers]
    assert get_z3_leaf_modules(model) == experts


class Experts(torch.nn.Module):
    """Two experts in two parameters, which get all samples; also a slice of a slice, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.randn(2, 8, 8))
        self.down = torch.nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = inputs
        for up, down in zip(self.up, self.down, strict=True):
            outputs = outputs + torch.nn.functional.linear(outputs, up).tanh() @ up[2:6].T @ down
        return outputs


@pytest.mark.parametrize("in_one_piece", [False, True])
def test_gathered_parameters_are_freed_until_the_backward_pass_as_if_they_had_stayed(in_one_piece: bool) -> None:
    model = torch.nn.ModuleDict({"experts": Experts()})
    experts: Any = model["experts"]
    parameters, inputs = [experts.up, experts.down], torch.randn(4, 8, requires_grad=True)
    weights = [parameter.detach().clone() for parameter in parameters]
    expected = torch.autograd.grad(experts(inputs).square().sum(), [inputs, *parameters])
    free_gathered_experts(model)
    sizes = [weight.numel() for weight in weights]
    memory = [torch.cat([weight.flatten() for weight in weights])] if in_one_piece else weights
    gathered = [piece.numpy().copy() for piece in memory]
    lives = [weakref.ref(piece) for piece in gathered]
    pieces = [torch.from_numpy(piece) for piece in gathered]
    if in_one_piece:
        pieces = list(pieces[0].split(sizes))
    for parameter, piece, weight in zip(parameters, pieces, weights, strict=True):
        parameter.data = piece.view(weight.shape)
    del gathered, pieces, piece
    loss = experts(inputs).square().sum()
    assert all(one() is not None for one in lives)
    for parameter in parameters:
        parameter.data = torch.empty(0)  # as DeepSpeed releases a parameter
    assert all(one() is None for one in lives), "nothing in the graph keeps it"
    for parameter, weight in zip(parameters, weights, strict=True):  # gathered again, into another place
        parameter.data = torch.cat([torch.zeros(5), weight.flatten()])[5:].view(weight.shape)
    found = torch.autograd.grad(loss, [inputs, *parameters])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
