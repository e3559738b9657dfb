"""Finds reasons in a config.json why its model cannot be trained. Light and pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jobs.model_files.architecture import architecture_problems, is_known
from jobs.model_files.positions import too_few_positions
from jobs.spec.finetune import Spec

# Fields for vocabulary, width, depth and heads. Their names depend on the model type.
_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("n_embd", "n_layer", "n_head", "d_model", "num_layers", "num_heads"),
)


def config_problems(config: dict[str, Any], spec: Spec) -> list[str]:
    """List why a model with this configuration cannot be trained."""
    if "auto_map" in config and not is_known(str(config.get("model_type", ""))):
        return [
            "config.json has auto_map: this model needs Python code from its directory, and trust_remote_code is off "
            "here. Choose a model whose architecture is part of transformers"
        ]
    found = [
        *_wrong_sizes(config),
        *_quantised(config),
        *too_few_positions(config, spec),
        *_other_classes(config, spec),
    ]
    return found + architecture_problems(config, spec)


def _wrong_sizes(config: dict[str, Any]) -> Iterator[str]:
    if not isinstance(config.get("model_type"), str):
        yield "config.json has no model_type, so transformers does not know which model this is: add it"
    for name in _SIZES:
        value = config.get(name)
        if isinstance(value, bool | str | float) or (isinstance(value, int) and value < 1):
            yield f"config.json has {name}: {json.dumps(value)}, expected a whole number from 1 on"


def _quantised(config: dict[str, Any]) -> Iterator[str]:
    if found := config.get("quantization_config"):
        method = found.get("quant_method", "unknown method") if isinstance(found, dict) else "unknown method"
        yield (
            f"the weights are quantised ({method}), and fine-tuning needs weights in fp32, bf16 or fp16. Take the "
            "release that is not quantised, or dequantise it (model.dequantize() in transformers) and save it without "
            "quantization_config"
        )


def _other_classes(config: dict[str, Any], spec: Spec) -> Iterator[str]:
    """Compare classes: a classifier keeps its head, so it must have as many classes as the data."""
    architectures = config.get("architectures") or ()
    is_classifier = any(str(one).endswith("ForSequenceClassification") for one in architectures)
    names = config.get("id2label")
    count = len(names) if isinstance(names, dict) else config.get("num_labels", 2)  # 2 is transformers' default
    if is_classifier and spec.num_labels not in (None, count):
        listed = f" ({', '.join(map(str, list(names.values())[:10]))})" if isinstance(names, dict) else ""
        yield (
            f"the model is a classifier of {count} classes{listed}, but the spec has {spec.num_labels}. Give "
            "data.labels with the model's classes, or a base model without a classifier"
        )
