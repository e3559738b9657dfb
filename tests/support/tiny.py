"""Tiny models with random weights and a small real tokenizer, saved as Hugging Face directories in a second."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = """the a one film story actor scene plot is was feels seems good bad dull bright slow quick very not quite
too and but with without heart mind laugh tear end start again never always"""


def save_tokenizer(folder: pathlib.Path) -> None:
    """A byte-level BPE trained on the words of this module; ChatML; no pad token, as many real ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_end|>", "<|im_start|>", "[UNK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(400, seed=1), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="[UNK]")
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def save_model(folder: pathlib.Path, kind: str, seed: int = 0, dropout: float = 0.0) -> pathlib.Path:
    """A model of `kind` (llama, gpt2, bloom, bert, or encoder, a bert without a head) with a tokenizer.

    `dropout` is for gpt2.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    vocabulary: dict[str, Any] = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 0}
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            **vocabulary,
        )
        model: Any = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            **vocabulary,
        )
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "bloom":
        # Weights of the usual size would leave so little to attention that a leak hardly moves the loss.
        config = transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **vocabulary)
        model = transformers.BloomForCausalLM(config)
    else:
        config = transformers.BertConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            num_labels=3,
        )
        model = transformers.BertForSequenceClassification(config)
        model = model.bert if kind == "encoder" else model
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def sentences(count: int, seed: int = 0, longest: int = 24) -> list[str]:
    """Sentences of 1 to `longest` words, of very uneven lengths."""
    draw, words = random.Random(seed), WORDS.split()
    return [
        " ".join(draw.choice(words) for _ in range(max(1, int(longest * draw.random() ** 2)))) for _ in range(count)
    ]


def write_text(path: pathlib.Path, count: int, seed: int = 0, longest: int = 24) -> pathlib.Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(count, seed, longest)))
    return path


def write_labelled(path: pathlib.Path, count: int, classes: int, seed: int = 0) -> pathlib.Path:
    rows = [{"text": text, "label": len(text) % classes} for text in sentences(count, seed)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(folder: pathlib.Path, model: pathlib.Path, train_file: pathlib.Path, **changes: Any) -> Any:
    """A small spec; `changes` are dotted keys with __ for dots, as train__max_steps=3."""
    from jobs.spec.finetune import Spec

    raw = written(str(folder), model, train_file, classify=changes.pop("classify", False))
    raw["train"] = {"learning_rate": 1e-3, "warmup_ratio": 0.1, "max_steps": 20, "weight_decay": 0.1}
    return Spec.model_validate(changed(raw, {name.replace("__", "."): value for name, value in changes.items()}))


def written(storage: str, model: pathlib.Path, train_file: pathlib.Path, classify: bool) -> dict[str, Any]:
    """A small spec as a user writes it, without the section `train`."""
    task = {"task": "sequence-classification", "num_labels": 3} if classify else {"task": "causal-lm"}
    return {
        "model": {"path": str(model), **task},
        "data": {
            "train": str(train_file), "format": "classification" if classify else "text", "seq_len": 64,
        },
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": storage,
        "seed": 7,
    }  # fmt: skip


def changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The spec with values by dotted name; sections that are not there are made."""
    for dotted, value in changes.items():
        *sections, name = dotted.split(".")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return raw
