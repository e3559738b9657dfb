"""Turns samples into tokens and targets, with a transformers tokenizer. Both engines of `prepare` use this module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from cluster.text import many
from jobs.data.prepared import IGNORE_INDEX
from jobs.data.sources.assistant_spans import Span, target_tokens
from jobs.data.sources.bad_records import Reason, Rejected
from jobs.data.sources.chat_template import ChatTemplate
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.formats import ClassSample, InstructionSample, PairSample, Sample, TextSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Ints = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
LossOn = Literal["completion", "all"]


class TokenRow(TypedDict):
    """One sample in the form of `prepared.ROW_SCHEMA`."""

    input_ids: Ints  # (tokens,), at most seq_len
    labels: Ints  # causal-lm: (tokens,), not shifted, IGNORE_INDEX where no target; classification: (1,), the class
    cut: int  # tokens of the sample beyond seq_len; 0 if a text was divided into pieces


Result = list[TokenRow] | Reason  # the rows of one sample, or why it cannot be used


def tokenise(
    samples: Sequence[Sample], tokenizer: Tokenizer, seq_len: int, loss_on: LossOn = "completion"
) -> list[Result]:
    """Turn samples into rows of at most `seq_len` tokens.

    Args:
        loss_on: "completion" makes the assistant's turns or the completion targets, with their end tokens; "all" makes
            every token a target. In plain texts all tokens are targets.

    Returns:
        For each sample its rows (several only if a long text is divided), or the reason why it has none.
    """
    results: list[Result] = []
    for kind, same in itertools.groupby(samples, type):
        results += _WAYS[kind](tuple(same), tokenizer, seq_len, loss_on)
    return results


def _text_rows(samples: Sequence[TextSample], tokenizer: Tokenizer, seq_len: int, loss_on: LossOn) -> Iterator[Result]:
    eos = tokenizer.eos_token_id
    encoded = tokenizer([sample.text for sample in samples], return_attention_mask=False, verbose=False)["input_ids"]
    for ids in encoded:
        ended = ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
        pieces = _pieces(np.asarray(ended, dtype=np.int32), seq_len)
        rows = [_causal(piece, piece) for piece in pieces]
        yield rows or Reason("fewer than two tokens, so nothing to predict")


def _pieces(ids: Ints, seq_len: int) -> list[Ints]:
    """Divide into consecutive pieces of 2 to `seq_len` tokens; a piece of one token would have no target."""
    if len(ids) < 2:
        return []
    cuts = list(range(seq_len, len(ids), seq_len))
    if cuts and len(ids) - cuts[-1] == 1:
        cuts[-1] -= 1
    return np.split(ids, cuts)


def _causal(ids: Ints, labels: Ints, cut: int = 0) -> TokenRow:
    labels = labels.copy()
    labels[:1] = IGNORE_INDEX  # the first token has no predecessor in its sample
    return {"input_ids": ids, "labels": labels, "cut": cut}


def _class_rows(
    samples: Sequence[ClassSample], tokenizer: Tokenizer, seq_len: int, loss_on: LossOn
) -> Iterator[Result]:
    encoded = tokenizer([sample.text for sample in samples], return_attention_mask=False, verbose=False)["input_ids"]
    long = [number for number, ids in enumerate(encoded) if len(ids) > seq_len]
    texts = [samples[number].text for number in long]
    # Truncation must keep the special tokens at both ends, so the tokenizer itself does it.
    kept = (
        tokenizer(texts, truncation=True, max_length=seq_len, return_attention_mask=False)["input_ids"] if long else []
    )
    shorter = dict(zip(long, kept, strict=True))
    for number, sample in enumerate(samples):
        ids = shorter.get(number, encoded[number])
        row: TokenRow = {
            "input_ids": np.asarray(ids, np.int32),
            "labels": np.asarray([sample.label], np.int32),
            "cut": len(encoded[number]) - len(ids),
        }
        yield [row] if len(ids) else Reason("no token is left of the text")


def _pair_rows(samples: Sequence[PairSample], tokenizer: Tokenizer, seq_len: int, loss_on: LossOn) -> Iterator[Result]:
    """Tokenise prompt and completion as one text, as in generation. The completion ends with eos."""
    eos = tokenizer.eos_token_id
    encodings = _encode([sample.prompt + sample.completion for sample in samples], tokenizer, True)
    for sample, encoding in zip(samples, encodings, strict=True):
        ids = np.asarray(encoding.ids, dtype=np.int32)
        target = target_tokens(encoding, len(ids), [(len(sample.prompt), len(sample.prompt) + len(sample.completion))])
        if eos is not None and (not len(ids) or ids[-1] != eos):
            ids, target = np.append(ids, np.int32(eos)), np.append(target, True)
        elif eos is not None:
            target[-1] = True
        yield _targeted(ids, target, seq_len, loss_on, "the completion")


def _instruction_rows(
    samples: Sequence[InstructionSample], tokenizer: Tokenizer, seq_len: int, loss_on: LossOn
) -> Iterator[Result]:
    """Render as a dialogue of two turns if the tokenizer has a chat template, else as plain text under headings."""
    if tokenizer.chat_template:
        turns = [(("user", _task(sample)), ("assistant", sample.output)) for sample in samples]
        return _chat_rows([ChatSample(one) for one in turns], tokenizer, seq_len, loss_on)
    pairs = [PairSample(_headed(sample), sample.output) for sample in samples]
    return _pair_rows(pairs, tokenizer, seq_len, loss_on)


def _task(sample: InstructionSample) -> str:
    return f"{sample.instruction}\n\n{sample.input}" if sample.input.strip() else sample.instruction


def _headed(sample: InstructionSample) -> str:
    given = f"### Input:\n{sample.input}\n\n" if sample.input.strip() else ""
    return f"### Instruction:\n{sample.instruction}\n\n{given}### Response:\n"


def _chat_rows(samples: Sequence[ChatSample], tokenizer: Tokenizer, seq_len: int, loss_on: LossOn) -> Iterator[Result]:
    if not tokenizer.chat_template:  # possible only for dialogues of a user's function; others were rejected before
        yield from [Reason("it is a dialogue, but the tokenizer has no chat template")] * len(samples)
        return
    for with_tools, some in itertools.groupby(samples, lambda sample: bool(sample.tools or sample.calling)):
        same = list(some)
        try:
            template = ChatTemplate(tokenizer, with_tools)
        except Rejected as error:
            yield from [error.reason] * len(same)
            continue
        yield from _rows_of_chats(same, tokenizer, template, seq_len, loss_on)


def _rows_of_chats(
    samples: Sequence[ChatSample], tokenizer: Tokenizer, template: ChatTemplate, seq_len: int, loss_on: LossOn
) -> Iterator[Result]:
    divided = [_divided(sample, template, loss_on) for sample in samples]
    parts = [part for some in divided if not isinstance(some, Reason) for part in some]
    if template.marks_answers:
        every = _marked_chats(parts, template)
    else:
        every = _rendered_chats(parts, tokenizer, template, with_spans=loss_on != "all")
    for some in divided:
        if isinstance(some, Reason):
            yield some
            continue
        yield _parts_of_one([next(every) for _ in some], seq_len, loss_on)


def _parts_of_one(parts: Sequence[Tokenised], seq_len: int, loss_on: LossOn) -> Result:
    """Return the rows of a dialogue that is divided. Parts whose answers are all beyond `seq_len` are left out."""
    rows, beyond, why = list[TokenRow](), 0, list[Reason]()
    for part in parts:
        if isinstance(part, Reason):
            return part
        result = _targeted(*part, seq_len, loss_on, "the assistant")
        if isinstance(result, Reason):
            why.append(result)
            beyond += max(len(part[0]) - seq_len, 0)
        else:
            rows += result
    if not rows:
        return why[0]
    rows[-1]["cut"] += beyond
    return rows


def _divided(sample: ChatSample, template: ChatTemplate, loss_on: LossOn) -> list[ChatSample] | Reason:
    try:
        return template.divided(sample, whole=loss_on == "all")
    except Rejected as error:
        return error.reason


def _targeted(ids: Ints, target: Mask, seq_len: int, loss_on: LossOn, whose: str) -> Result:
    if loss_on == "all":
        target = np.ones(len(ids), dtype=bool)
    labels = np.where(target, ids, IGNORE_INDEX).astype(np.int32)
    row = _causal(ids[:seq_len], labels[:seq_len], max(len(ids) - seq_len, 0))
    if np.any(row["labels"] != IGNORE_INDEX):
        return [row]
    if np.any(labels[1:] != IGNORE_INDEX):
        left = f"no token of {whose} is left after data.seq_len"
        return Reason(f"{left} ({seq_len}) has cut its {many(len(ids), 'token')}: raise it", left)
    return Reason(f"there is no token of {whose} to learn")


Tokenised = tuple[Ints, Mask] | Reason  # tokens of a dialogue, and which of them are the assistant's; or a reason


def _marked_chats(samples: Sequence[ChatSample], template: ChatTemplate) -> Iterator[Tokenised]:
    for sample in samples:
        try:
            encoded = template.marked(sample)
        except Rejected as error:
            yield error.reason
            continue
        ids, target = np.asarray(encoded["input_ids"], np.int32), np.asarray(encoded["assistant_masks"], dtype=bool)
        yield _without_unlearned(ids, target, sample)


def _without_unlearned(ids: Ints, target: Mask, sample: ChatSample) -> Tokenised:
    """Clear the marks of the turns of weight 0: each stretch of marks is a turn of the assistant."""
    stretches = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(target)) + 1)
    marked = [stretch for stretch in stretches if len(stretch) and target[stretch[0]]]
    if sample.unlearned and len(marked) != len(sample.answers):
        return Reason("it has turns of weight 0, but the chat template does not mark each answer by itself")
    for number, stretch in zip(sample.answers, marked, strict=False):
        target[stretch] = number not in sample.unlearned
    return ids, target


def _rendered_chats(
    samples: Sequence[ChatSample], tokenizer: Tokenizer, template: ChatTemplate, with_spans: bool
) -> Iterator[Tokenised]:
    """Tokenise with a template without marks.

    Args:
        with_spans: False: every token is a target, so the assistant's are not looked for.
    """

    def found_in(sample: ChatSample) -> tuple[str, list[Span], bool] | Reason:
        try:
            return template.answers_in(sample) if with_spans else (template.text_of(sample), [], False)
        except Rejected as error:
            return error.reason

    every = [found_in(sample) for sample in samples]
    # The template writes special tokens itself, so the tokenizer must not add them.
    encoded = iter(_encode([found[0] for found in every if not isinstance(found, Reason)], tokenizer, False))
    eos = tokenizer.eos_token_id
    for found in every:
        if isinstance(found, Reason):
            yield found
            continue
        encoding, (_, spans, is_open) = next(encoded), found
        ids, target = np.asarray(encoding.ids, np.int32), target_tokens(encoding, len(encoding.ids), spans)
        if is_open and eos is not None:
            ids, target = np.append(ids, np.int32(eos)), np.append(target, True)
        yield ids, target


def _encode(texts: list[str], tokenizer: Tokenizer, special: bool) -> Iterable[Any]:
    """Encode with the tokenizers library, whose encodings look up the token of a single character."""
    if not texts:
        return []
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()  # an earlier call of the tokenizer may have left it on
    backend.no_padding()
    found: Iterable[Any] = backend.encode_batch(texts, add_special_tokens=special)
    return found


_WAYS: dict[type, Callable[[Any, Any, int, LossOn], Iterable[Result]]] = {
    TextSample: _text_rows,
    ChatSample: _chat_rows,
    PairSample: _pair_rows,
    InstructionSample: _instruction_rows,
    ClassSample: _class_rows,
}
