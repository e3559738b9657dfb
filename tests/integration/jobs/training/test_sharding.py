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
    """Two experts in one parameter, which get all samples; also a slice of a slice, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = inputs
        for expert in self.weight:
            outputs = outputs + torch.nn.functional.linear(outputs, expert).tanh() @ expert[2:6].T @ expert[2:6]
        return outputs


def test_a_gathered_parameter_is_freed_until_the_backward_pass_as_if_it_had_stayed() -> None:
    model = torch.nn.ModuleDict({"experts": Experts()})
    experts: Any = model["experts"]
    weights, inputs = experts.weight.detach().clone(), torch.randn(4, 8, requires_grad=True)
    expected = torch.autograd.grad(experts(inputs).square().sum(), [inputs, experts.weight])
    free_gathered_experts(model)
    gathered = weights.numpy().copy()
    lives = weakref.ref(gathered)
    experts.weight.data = torch.from_numpy(gathered)
    del gathered
    loss = experts(inputs).square().sum()
    assert lives() is not None
    experts.weight.data = torch.empty(0)  # as DeepSpeed releases a parameter
    assert lives() is None, "nothing in the graph keeps it"
    flat = torch.cat([torch.zeros(5), weights.flatten()])
    experts.weight.data = flat[5:].view(2, 8, 8)  # gathered again, into another place
    found = torch.autograd.grad(loss, [inputs, experts.weight])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
