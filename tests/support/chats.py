"""Chat templates in the style of well-known models, what each must render written out by hand, and small tokenizers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

Turns = Sequence[tuple[str, str]]  # (role, content)
Pieces = list[tuple[str, bool]]  # text, and whether the assistant is to learn it

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for turn in turns %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if turn['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + eos_token }}{% endif %}{% endfor %}"
)


def chatml_pieces(turns: Turns) -> Pieces:
    default = "<|im_start|>system\nYou help.<|im_end|>\n" if turns[0][0] != "system" else ""
    return [(default, False), *marked_pieces(turns)]


def marked_pieces(turns: Turns) -> Pieces:
    pieces: Pieces = []
    for role, content in turns:
        pieces += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", role == "assistant"), ("\n", False)]
    return pieces


def llama3_pieces(turns: Turns) -> Pieces:
    pieces: Pieces = [("<s>", False)]
    for role, content in turns:
        pieces += [(f"<|start_header_id|>{role}<|end_header_id|>\n\n", False)]
        pieces += [(f"{content.strip()}<|eot_id|>", role == "assistant")]
    return pieces


def mistral_pieces(turns: Turns) -> Pieces:
    pieces: Pieces = [("<s>", False)]
    system = ""
    for role, content in turns:
        if role == "system":
            system = f"{content}\n\n"
        elif role == "user":
            pieces += [(f"[INST] {system}{content} [/INST]", False)]
            system = ""
        else:
            pieces += [(f" {content}</s>", True)]
    return pieces


# name -> template, what it must render, and its end token
TEMPLATES: dict[str, tuple[str, Callable[[Turns], Pieces], str]] = {
    "chatml": (CHATML, chatml_pieces, "<|im_end|>"),
    "marked": (MARKED, marked_pieces, "<|im_end|>"),
    "llama3": (LLAMA3, llama3_pieces, "<|eot_id|>"),
    "mistral": (MISTRAL, mistral_pieces, "</s>"),
}

SPECIAL = (
    "<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
_BYTES = [f"<0x{number:02X}>" for number in range(256)]
_CORPUS = [
    "a film that moves is dull or bright; the story of love and war never quite lands, warm as it is",
    "You help. system user assistant what is it about? hello there, again and again! say it in one word: yes no",
] * 40


def _byte_level() -> Any:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _metaspace() -> Any:
    """Unigram of SentencePiece: spaces are pieces of words, NFKC comes first, unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(_CORPUS, trainer)
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((byte, -20.0) for byte in _BYTES)], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _llama2() -> Any:
    """BPE of SentencePiece, as Llama 2 and Mistral have it: a space before each stretch, bytes for the unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=[*SPECIAL, *_BYTES], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


_MAKERS: dict[str, Callable[[], Any]] = {"byte-level": _byte_level, "metaspace": _metaspace, "llama2": _llama2}
TOKENIZERS = tuple(_MAKERS)


@functools.cache
def _trained(kind: str) -> str:
    """Trained once a process: the pieces of a Unigram differ from one training to the next."""
    text: str = _MAKERS[kind]().to_str()
    return text


def tokenizer_of(kind: str) -> Any:
    """A tokenizer of the tokenizers library, of its own."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_trained(kind))


def wrapped(tokenizer: Any, eos: str, pad: str | None = None, template: str | None = None) -> Any:
    """A transformers tokenizer around one of the tokenizers library; its pad token is its end token unless given."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=eos,
        pad_token=pad or eos,
        unk_token="<unk>",
        chat_template=template,
    )


def offsets_of(tokenizer: Any, text: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
    """All tokens of a text, and the characters that each covers."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens cover a character of a span."""
    return [any(max(start, low) < min(end, high) for low, high in spans) for start, end in offsets]


def spans_of(pieces: Pieces) -> list[tuple[int, int]]:
    """The characters of the pieces that are to be learned."""
    spans, end = [], 0
    for text, mine in pieces:
        end += len(text)
        if mine:
            spans.append((end - len(text), end))
    return spans
