"""Sizes of a model in its config.json, under the names that the types of models use. Light and pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")
WIDTH: Final = ("hidden_size", "n_embd", "d_model", "dim")
HEADS: Final = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "n_heads")
VOCABULARY: Final = ("vocab_size",)
FEED_FORWARD: Final = ("intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim")


def size_in(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of these sizes that the model has (of its text part); None if it has none."""
    inner = config.get("text_config")
    text = inner if inner and isinstance(inner, Mapping) else config
    return next((text[name] for name in names if isinstance(text.get(name), int)), None)
