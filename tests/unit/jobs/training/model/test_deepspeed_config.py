"""The DeepSpeed dictionary says everything, and nothing on "auto"."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.planning.precision import precision_of
from jobs.spec.finetune import Spec, Train
from jobs.training.model.deepspeed_config import deepspeed_config


def spec_of(**train: Any) -> Spec:
    return Spec.model_validate(
        {
            "model": {"path": "m", "task": "causal-lm"},
            "data": {"train": "t.jsonl", "format": "text"},
            "resources": {"num_workers": 4},
            "train": train,
        }
    )


def values(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [leaf for value in node.values() for leaf in values(value)]
    if isinstance(node, list):
        return [leaf for value in node for leaf in values(value)]
    return [node]


@given(
    stage=st.sampled_from([1, 2, 3]), offload=st.booleans(), batch=st.integers(4, 64),
    per_device=st.integers(1, 8), precision=st.sampled_from(["fp32", "bf16", "fp16"]),
)  # fmt: skip
def test_nothing_is_left_on_auto_and_the_batch_adds_up(
    stage: Any, offload: bool, batch: int, per_device: int, precision: Any
) -> None:
    zero = {"stage": stage, "offload_optimizer": "cpu" if offload else None}
    spec = spec_of(zero=zero, global_batch_size=batch, per_device_train_batch_size=per_device)
    config = deepspeed_config(spec, precision)
    assert "auto" not in values(config) and None not in values(config)
    assert config["train_batch_size"] == (
        config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 4
    )
    assert config["train_batch_size"] >= batch
    assert config["zero_optimization"]["stage"] == stage
    assert [config["bf16"]["enabled"], config["fp16"]["enabled"]] == [precision == "bf16", precision == "fp16"]
    assert ("offload_optimizer" in config["zero_optimization"]) == offload
    assert config["optimizer"]["params"]["torch_adam"] != offload
    assert config["optimizer"]["params"].get("fused", False) != offload
    assert ("sub_group_size" in config["zero_optimization"]) == (stage == 3 and not offload)


def test_what_the_user_sets_arrives() -> None:
    spec = spec_of(
        learning_rate=3e-5,
        adam_beta2=0.95,
        max_grad_norm=0.5,
        zero={"param_persistence_threshold": 7, "offload_param": "cpu"},
    )
    config = deepspeed_config(spec, "bf16")
    assert config["optimizer"]["params"]["lr"] == 3e-5
    assert config["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage3_param_persistence_threshold"] == 7
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("train", "device_has_bf16", "precision"),
    [
        (Train(), True, "bf16"),
        (Train(), False, "fp32"),
        (Train(bf16=False), True, "fp32"),
        (Train(bf16=True), False, "bf16"),
        (Train(fp16=True), True, "fp16"),
    ],
)
def test_bf16_is_used_where_the_device_has_it_unless_the_spec_says_otherwise(
    train: Train, device_has_bf16: bool, precision: str
) -> None:
    assert precision_of(train, device_has_bf16) == precision
