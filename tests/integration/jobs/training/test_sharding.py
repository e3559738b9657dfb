"""Which models ZeRO-3 can shard while they are loaded, and that it gathers the experts of a layer together."""

from __future__ import annotations

import pathlib

import pytest
import torch
import transformers

from bench.zoo.tiny import tiny_config
from jobs.training.model.sharding import gather_data_dependent_modules, loads_in_shards
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


@pytest.mark.parametrize(("model_type", "count"), [("qwen3_moe", 2), ("jetmoe", 0), ("llama", 0)])
def test_the_experts_of_a_layer_are_gathered_together(model_type: str, count: int) -> None:
    from deepspeed.utils import get_z3_leaf_modules

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(model_type))
    gather_data_dependent_modules(model)
    assert len(get_z3_leaf_modules(model)) == count
