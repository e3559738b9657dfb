"""From samples to tokens and targets, with a transformers tokenizer. Both engines of `prepare` run these functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from jobs.data.formats import ChatSample, ClassSample, Sample, TextSample
from jobs.data.prepared import IGNORE_INDEX
from jobs.data.spans import Span, Unrenderable, assistant_spans
from jobs.data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Result", "TokenRow", "load_tokenizer", "tokenise"]

Ints = npt.NDArray[np.int32]
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\b")


class TokenRow(TypedDict):
    """One sample as `prepared.ROW_SCHEMA` wants it."""

    input_ids: Ints  # (tokens,), at most seq_len
    labels: Ints  # causal-lm: (tokens,), not shifted, IGNORE_INDEX where no target; classification: (1,), the class


Result = list[TokenRow] | str  # the rows of one sample, or why it cannot be used


def tokenise(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[Result]:
    """Turn samples of one kind into rows of at most `seq_len` tokens.

    Returns:
        For each sample its rows (several only where a long text is cut), or the reason why it has none.
    """
    if not samples:
        return []
    return _WAYS[type(samples[0])](samples, tokenizer, seq_len)


def _text_rows(samples: Sequence[TextSample], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[Result]:
    eos = tokenizer.eos_token_id
    encoded = tokenizer([sample.text for sample in samples], return_attention_mask=False, verbose=False)["input_ids"]
    results: list[Result] = []
    for ids in encoded:
        ended = ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
        pieces = _pieces(np.asarray(ended, dtype=np.int32), seq_len)
        results.append([_causal(piece, piece) for piece in pieces] or "fewer than two tokens, so nothing to predict")
    return results


def _pieces(ids: Ints, seq_len: int) -> list[Ints]:
    """Consecutive pieces of at most `seq_len` tokens. None has only one, which would hold no target."""
    if len(ids) < 2:
        return []
    cuts = list(range(seq_len, len(ids), seq_len))
    if cuts and len(ids) - cuts[-1] == 1:
        cuts[-1] -= 1
    return np.split(ids, cuts)


def _causal(ids: Ints, labels: Ints) -> TokenRow:
    labels = labels.copy()
    labels[:1] = IGNORE_INDEX  # nothing comes before it in the sample; in a packed row, only another sample
    return {"input_ids": ids, "labels": labels}


def _class_rows(samples: Sequence[ClassSample], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[Result]:
    texts = [sample.text for sample in samples]
    encoded = tokenizer(texts, truncation=True, max_length=seq_len, return_attention_mask=False)["input_ids"]
    results: list[Result] = []
    for sample, ids in zip(samples, encoded, strict=True):
        row: TokenRow = {"input_ids": np.asarray(ids, np.int32), "labels": np.asarray([sample.label], np.int32)}
        results.append([row] if len(ids) else "no token is left of the text")
    return results


def _chat_rows(samples: Sequence[ChatSample], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> list[Result]:
    template = tokenizer.get_chat_template()
    marked = bool(_GENERATION_BLOCK.search(template))
    return list((_marked_chats if marked else _rendered_chats)(samples, tokenizer, seq_len))


def _turns(sample: ChatSample) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in sample.messages]


def _marked_chats(samples: Sequence[ChatSample], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Iterator[Result]:
    """The template itself says which tokens are generated."""
    for sample in samples:
        try:
            encoded: Any = tokenizer.apply_chat_template(
                _turns(sample), return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
            )
        except Exception as error:  # the template is a program of its own
            yield f"the chat template refuses it: {error}"
            continue
        yield _chat_row(encoded["input_ids"], np.asarray(encoded["assistant_masks"], dtype=bool), seq_len)


def _rendered_chats(
    samples: Sequence[ChatSample], tokenizer: PreTrainedTokenizerBase, seq_len: int
) -> Iterator[Result]:
    """Which characters are the assistant's follows from rendering the dialogue turn by turn."""

    def render(messages: Sequence[dict[str, str]], prompt: bool) -> str:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    ends = tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
    rendered = [_rendered(_turns(sample), render, ends) for sample in samples]
    texts = [found[0] for found in rendered if not isinstance(found, str)]
    encoded = _encode(texts, tokenizer)
    for found in rendered:
        if isinstance(found, str):
            yield found
        else:
            ids, offsets = next(encoded)
            yield _chat_row(ids, _inside(offsets, found[1]), seq_len)


def _rendered(
    turns: list[dict[str, str]], render: Callable[[Sequence[dict[str, str]], bool], str], ends: tuple[str, ...]
) -> tuple[str, list[Span]] | str:
    try:
        return assistant_spans(turns, render, ends)
    except Unrenderable as error:
        return str(error)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], Any]]:
    if not texts:
        return iter(())
    # The template writes special tokens itself, so none are added.
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return zip(found["input_ids"], found["offset_mapping"], strict=True)


def _inside(offsets: Sequence[tuple[int, int]], spans: list[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens cover at least one character of a span. A token without characters belongs to none."""
    start, end = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    inside = np.zeros(len(start), dtype=bool)
    for low, high in spans:
        inside |= (end > low) & (start < high) & (end > start)
    return inside


def _chat_row(ids: Sequence[int], target: npt.NDArray[np.bool_], seq_len: int) -> Result:
    tokens = np.asarray(ids, dtype=np.int32)
    row = _causal(tokens[:seq_len], np.where(target, tokens, IGNORE_INDEX).astype(np.int32)[:seq_len])
    if np.any(row["labels"] != IGNORE_INDEX):
        return [row]
    if target.any():
        return f"no assistant token among the first {seq_len} of {len(tokens)}: raise data.seq_len"
    return "the chat template writes no assistant token"


_WAYS: dict[type, Callable[[Any, Any, int], list[Result]]] = {
    TextSample: _text_rows,
    ChatSample: _chat_rows,
    ClassSample: _class_rows,
}
