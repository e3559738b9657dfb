"""Make a tiny model of any type that transformers has, from the defaults of its configuration.

Sizes are recognised by the names of the configuration's fields, which transformers uses alike for most types; the few
types whose sizes depend on each other in a way of their own are listed in `_OWN`.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from tests.support import tiny

VOCABULARY = 512
POSITIONS = 256

# (pattern of a field's name, its value); the first match counts. Fields that match nothing keep their default.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(unpadded_|text_)?vocab(ulary)?_size|decoder_vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (r"max_position_embeddings|n_positions|n_ctx|max_sequence_length|max_seq_len|context_length", POSITIONS),
    (r"max_(source|target)_positions|original_max_position_embeddings|model_max_length", POSITIONS),
    (r"num_hidden_layers|n_layers?|num_layers|(encoder|decoder|num_encoder|num_decoder)_layers|num_hidden_groups", 2),
    (r"num_blocks|depth|n_(input|recurrent|output)_layers|num_inner_layers", 2),
    (r"num_attention_heads|n_heads?|num_heads|(num_)?(encoder|decoder)_attention_heads|attention_heads", 4),
    (r"(swa|linear|index|global)_(num_attention|num|n)_?heads|index_n_heads|mamba_num_heads|num_mem_heads", 4),
    (r"linear_num_(key|value)_heads|mamba_n_heads", 4),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|num_query_groups|multi_query_group_num", 2),
    (r"num_global_key_value_heads|n_kv_heads", 2),
    (r"(swa_|global_|linear_|attention_)?head_dim|attention_head_size|d_head|d_kv|dim_head|kv_channels|head_size", 8),
    (r"linear_(key|value)_head_dim|mamba_head_dim|mamba_d_head|v_head_dim|swa_v_head_dim|attention_head_dim", 8),
    (r"qk_nope_head_dim|qk_rope_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"index_head_dim", 16),
    (r"(q|kv|o)_lora_rank|adapter_rank", 16),
    (r"rotary_dim", 4),
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embedding_size|embedding_dim|word_embed_proj_dim|lru_width", 32),
    (r"(input|output)_embedding_size|attention_hidden_size|pooler_hidden_size|backbone_hidden_size|d_latents", 32),
    (r"hidden_size_per_layer_input|classifier_proj_size|router_hidden_size|dim_model_base|entity_emb_size", 32),
    (
        r".*intermediate_size(_mlp|_per_layer)?|.*ffn_dim|ffn_(hidden_)?size|ffn_hidden_size|hidden_dim|d_ff|dff|d_inner",
        64,
    ),
    (r"n_inner|dim_ff|feed_forward_size|expert_ffn_hidden_size|mamba_d_ssm|intermediate_dim", 64),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_moe_experts", 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|top_k_experts|num_selected_experts|moe_k", 2),
    (r"n_group|topk_group|moe_num_shared_experts|n_shared_experts|num_shared_experts", 1),
    (r"mamba_d_state|state_size|ssm_state_size|time_step_rank|mamba_dt_rank", 8),
    (r"mamba_chunk_size|chunk_size", 16),
    (r"encoder_hash_byte_group_vocab", 64),
    (r"image_size", 16),
    (r"patch_size", 8),
    (r"num_mel_bins", 16),
)
_NAMES = re.compile("|".join(f"(?P<g{number}>{pattern})" for number, (pattern, _) in enumerate(_SIZES)))

END = 0  # the tokenizer's end-of-text token
_SPECIAL = {"bos_token_id": 1, "pad_token_id": 2}

# Overrides for single types: what a rule of the names cannot know.
_HYBRID = {"num_hidden_layers": 4}
_INDEXED = _HYBRID | {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_MAMBA = {"mamba_d_head": 16}
_WIDE_ATTENTION = {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4}
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _HYBRID | {"layer_types": ["linear_attention", "full_attention"] * 2, "num_expert_group": 1},
    "bamba": _MAMBA,
    "blt": {
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 500000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "vision_config": {"per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dory": {"num_hidden_layers": 6},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": _MAMBA,
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _MAMBA,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": _HYBRID | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _HYBRID,
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": _HYBRID,
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "mistral4": {"head_dim": 16},
    "nemotron_h": {"n_groups": 2},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_moe": {"text_config": _HYBRID},
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "recurrent_gemma": _HYBRID,
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    "t5": {"decoder_start_token_id": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": _WIDE_ATTENTION
    | {
        "num_hidden_layers": 5,
        "layer_types": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": _WIDE_ATTENTION
    | {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
    },
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> Any:
    """The configuration of a tiny model. Raises whatever the configuration's class raises."""
    from transformers import CONFIG_MAPPING

    cls, own = CONFIG_MAPPING[model_type], _OWN.get(model_type, {})
    try:
        default = cls()
    except Exception:  # its own defaults contradict each other
        default = cls(**own)
    return cls(**_merged(_small(default.to_dict()), own))


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _merged(values.get(name, {}), value) for name, value in changes.items() if isinstance(value, dict)}
    return values | changes | nested


def _small(values: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            out[name] = _small(value)
        elif isinstance(value, float) and re.search("drop|pdrop", name):
            out[name] = 0.0
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name == "eos_token_id":
            out[name] = END
        elif match := _NAMES.fullmatch(name):
            out[name] = _SIZES[int(str(match.lastgroup)[1:])][1]
        elif name.endswith(("token_id", "token_index")) and value >= VOCABULARY:
            out[name] = _SPECIAL.get(name, VOCABULARY - 1 - len(out))  # no token of the text
    if "kv_lora_rank" in out:  # multi-head latent attention has as many key heads as heads
        out["num_key_value_heads"] = out.get("num_attention_heads", 4)
    return out


def save_tokenizer(folder: pathlib.Path) -> None:
    """A tokenizer that ends each text with the end-of-text token, as classification heads of some types need it."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tiny.save_tokenizer(folder)
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    end = tokenizer.id_to_token(END)
    tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, END)])
    tokenizer.save(file)
