"""Names in lora.target_modules are compared with the names of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.errors import SpecError
from jobs.model_files.directory import check_model_dir
from jobs.model_files.lora_targets import targets_problem
from tests.unit.jobs.model_files.test_directory import spec

LLAMA = {
    "model.embed_tokens.weight": (64, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
}


@pytest.mark.parametrize(
    "wanted",
    [["all-linear"], ["q_proj"], ["self_attn.q_proj", "up_proj"], ["model.layers.0.mlp.up_proj"]],
)
def test_a_name_that_a_module_has_or_ends_with_is_no_problem(wanted: list[str]) -> None:
    assert targets_problem(wanted, "llama", LLAMA) is None
    without_prefix = {name.removeprefix("model."): shape for name, shape in LLAMA.items()}
    assert targets_problem(wanted, "llama", without_prefix) is None, "transformers adds the prefix"


@pytest.mark.parametrize("stranger", ["foo", "proj", "query", "mlp.q_proj", "input_layernorm"])
def test_a_name_that_matches_no_matrix_is_told_with_those_there_are(stranger: str) -> None:
    assert targets_problem(["all-linear", "q_proj", stranger], "llama", LLAMA) == (
        f"the model has no linear module {stranger}: its layers have q_proj, up_proj. Name some of them, or leave it "
        "out (all-linear)"
    )


def test_nothing_is_said_of_weights_that_transformers_may_rename() -> None:
    assert targets_problem(["gate_up_proj"], "mixtral", {"model.layers.0.experts.0.w1.weight": (8, 8)}) is None
    assert targets_problem(["foo"], None, LLAMA) is None and targets_problem(["foo"], "llama", {}) is None


def test_the_check_of_a_model_s_directory_reads_the_names_in_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({name: np.zeros(shape, np.float32) for name, shape in LLAMA.items()}, tmp_path / "model.safetensors")
    named, stranger = ({"rank": 2, "target_modules": [name]} for name in ("q_proj", "foo"))
    with pytest.raises(SpecError, match=r"lora\.target_modules: the model has no linear module foo: its layers have"):
        check_model_dir(spec(str(tmp_path), method="lora", lora=stranger))
    check_model_dir(spec(str(tmp_path), method="lora", lora=named))
