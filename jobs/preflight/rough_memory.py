"""Estimates an upper bound of the memory of a small job, for which the model need not be traced. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.spec.finetune import Spec

# Bytes of memory for each byte of weights in files: these have 2 bytes for each element or more, and a worker without
# GPU needs at most 40 for each (weights, gradients, Adam's states and temporaries, buckets, the copy for checkpoints).
_FOR_EACH_BYTE = 20
# Tensors that one token leaves in a layer: of the layer's width, of the inner width, and of the attention matrix.
_OF_WIDTH, _OF_INNER, _OF_ATTENTION, _OF_LOGITS = 40, 8, 6, 6
_FP32 = 4


def rough_bytes(spec: Spec, config: Mapping[str, Any], weights_bytes: int, seq_len: int) -> int | None:
    """Return an upper bound of the bytes that a worker without GPU needs beside its program; None: unknown.

    Args:
        config: the content of the model's config.json.
        weights_bytes: size of the files with the model's weights.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    layers, width, heads = (_number(text, *names) for names in _NAMES)
    if not (layers and width and heads and weights_bytes):
        return None
    feed_forward = _number(text, "intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim") or 4 * width
    experts = _number(text, "num_experts_per_tok") or 1
    per_token = layers * (width * _OF_WIDTH + experts * feed_forward * _OF_INNER + heads * seq_len * _OF_ATTENTION)
    logits = (_number(text, "vocab_size") or 0) * _OF_LOGITS if spec.model.task == "causal-lm" else 0
    rows = spec.train.per_device_train_batch_size
    return _FOR_EACH_BYTE * weights_bytes + rows * seq_len * (per_token + logits) * _FP32


_NAMES = (
    ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers"),
    ("hidden_size", "n_embd", "d_model", "dim"),
    ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "n_heads"),
)


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)
