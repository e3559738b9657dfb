"""How many tokens a model has positions for, according to its config.json. Light and pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jobs.spec.finetune import Spec

_POSITIONS_START_BEHIND_PADDING = (
    *("roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "mpnet"),
    *("longformer", "data2vec-text", "ibert", "luke", "markuplm", "esm"),
)
_FIELDS = ("max_position_embeddings", "n_positions", "max_target_positions")  # the last one is Whisper's
_ROTARY = ("rotary_pct", "rotary_emb_base", "global_rope_theta")  # of GPT-NeoX and ModernBERT, as released
# Types without a table of positions, although configurations on the hub have `n_positions`.
_WITHOUT_POSITIONS = ("t5", "mt5", "umt5", "longt5")


def too_few_positions(config: dict[str, Any], spec: Spec) -> Iterator[str]:
    """Compare data.seq_len with a table of learned positions."""
    positions = learned_positions(config)
    prompt = spec.prompt.num_virtual_tokens if spec.method.kind == "prompt" else 0
    if positions is not None and spec.data.seq_len + prompt > positions:
        before = f" and prompt.num_virtual_tokens is {prompt}" if prompt else ""
        yield (
            f"the model has {positions} positions, but data.seq_len is {spec.data.seq_len}{before}: set data.seq_len "
            f"to {max(positions - prompt, 1)} or less"
        )


def beyond_positions(config: dict[str, Any], seq_len: int) -> str | None:
    """Describe rows that are longer than those for which rotary positions were made; None if they are not.

    Such a model trains on any length, so this is no mistake. Scaled positions reach further than config.json says.
    """
    positions = _written(config)
    scaled = any('"factor"' in json.dumps(config.get(name)) for name in ("rope_scaling", "rope_parameters"))
    if not isinstance(positions, int) or not _is_rotary(config) or scaled or seq_len <= positions:
        return None
    return (
        f"data.seq_len ({seq_len}) is more than the {positions} positions for which the model was made "
        "(config.json): it may do badly on longer samples"
    )


def learned_positions(config: dict[str, Any]) -> int | None:
    """Return the tokens that a table of positions has room for; None without one, as with rotary positions.

    GPT-J, CodeGen and RoFormer have rotary positions and a table, so the names of their fields do not count here.
    """
    positions, rotary = _written(config), _is_rotary(config)
    relative = config.get("position_biased_input") is False  # DeBERTa, as released
    if rotary or relative or config.get("model_type") in _WITHOUT_POSITIONS or not isinstance(positions, int):
        return None
    if config.get("model_type") in _POSITIONS_START_BEHIND_PADDING:
        pad = None if config["model_type"] == "mpnet" else config.get("pad_token_id")  # MPNet's is always 1
        positions -= (pad if isinstance(pad, int) else 1) + 1
    return positions


def _written(config: dict[str, Any]) -> Any:
    return next(filter(None, map(config.get, _FIELDS)), None)


def _is_rotary(config: dict[str, Any]) -> bool:
    named = any(key.startswith("rope_") or key in _ROTARY for key in config)
    return named or config.get("position_embedding_type") == "rotary"  # ESM-2
