"""Tokens and targets of every causal format, against transformers' own rendering and spans written out by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from jobs.data.prepared import IGNORE_INDEX
from jobs.data.sources.assistant_spans import target_tokens
from jobs.data.sources.bad_records import Reason
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.formats import InstructionSample, PairSample
from jobs.data.sources.tokenize import TokenRow, tokenise
from jobs.model_files.tokenizer import load_tokenizer
from tests.support.chats import (
    CHATML,
    TEMPLATES,
    TOKENIZERS,
    Turns,
    covered,
    offsets_of,
    spans_of,
    tokenizer_of,
    wrapped,
)

ALTERNATING: dict[str, Turns] = {
    "one turn": [("user", "what is it about?"), ("assistant", "love and war")],
    "system": [("system", "say it in one word"), ("user", "is it dull?"), ("assistant", "no")],
    "several turns": [
        ("user", "hello"), ("assistant", "hello there"), ("user", "again"), ("assistant", "again!"),
        ("user", "and again"), ("assistant", "yes"),
    ],
    "system and turns": [
        ("system", "You help."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
    ],
    "empty answer": [("user", "hello"), ("assistant", ""), ("user", "what?"), ("assistant", "it is bright")],
    "empty last answer": [("user", "hello"), ("assistant", "yes"), ("user", "again"), ("assistant", "")],
    "empty question": [("user", ""), ("assistant", "a film that moves")],
    "equal turns": [("user", "no"), ("assistant", "no"), ("user", "no"), ("assistant", "no")],
    "emoji": [("user", "👩‍👩‍👧‍👦 🇩🇪?"), ("assistant", "👍🏽"), ("user", "😀"), ("assistant", "it is 🤷🏿‍♀️ never 🎬")],
    "combining marks": [("user", "cafe\u0301 \u1e69 s\u0323\u0307"), ("assistant", "\u0301e\u0301, n\u0303a\u0300")],
    "wide": [("user", "这部电影讲什么?"), ("assistant", "愛と戦争。"), ("user", "한국어 ﷺ ﬃ"), ("assistant", "ﬃ ½ ﷺ")],
    "right to left": [("user", "ما هو؟"), ("assistant", "שלום, film")],
    "spaces": [("user", "  hello \n"), ("assistant", "  bright  \n\n"), ("user", "\t"), ("assistant", "\n\n yes\t")],
    "only spaces": [("user", " "), ("assistant", "   "), ("user", "\n"), ("assistant", "\n")],
    "no-break spaces": [("user", "\u00a0a\u2003"), ("assistant", "\u00a0love\u00a0")],
    "line breaks": [("user", "a\r\nb"), ("assistant", "one\r\n\r\ntwo\u2028three")],
    "long words": [("user", "a" * 300), ("assistant", "b" * 300)],
    "end tokens in the texts": [
        ("user", "say <|im_end|> or <|eot_id|> or </s>"), ("assistant", "<|im_end|> <|eot_id|> </s> is a token"),
        ("user", "</s>"), ("assistant", "warm<|im_end|>"),
    ],
    "turns in the texts": [
        ("user", "<|im_start|>assistant\nnot mine<|im_end|>\n[INST] x [/INST] not mine</s>"),
        ("assistant", "<|im_start|>user\nmine<|im_end|>\n<|start_header_id|>user<|end_header_id|>[INST] mine [/INST]"),
        ("user", "<|start_header_id|>assistant<|end_header_id|>\n\nnot mine<|eot_id|>"), ("assistant", "yes"),
    ],
    "ends with a question": [("user", "a"), ("assistant", "b"), ("user", "and then?")],
}  # fmt: skip
OTHERS: dict[str, Turns] = {
    "assistant first": [("assistant", "hello"), ("user", "a"), ("assistant", "b")],
    "assistant only": [("assistant", "a film")],
    "assistant twice": [("user", "a"), ("assistant", ""), ("assistant", "again")],
    "system in the middle": [("user", "a"), ("assistant", "b"), ("system", "warm"), ("user", "c"), ("assistant", "d")],
    "other role": [("user", "a"), ("tool", "4"), ("assistant", "four")],
}


@functools.cache
def made(kind: str, template: str | None, pad: str | None = None) -> Any:
    """A tokenizer of a kind with a template of TEMPLATES, or without one; by itself it begins a text with <s>."""
    text, _, end = TEMPLATES[template] if template else (None, None, "</s>")
    return with_ends(kind, "<s> $A", end, pad, text)


def with_ends(kind: str, pattern: str, eos: str = "</s>", pad: str | None = None, template: str | None = None) -> Any:
    """A tokenizer that puts special tokens around a text by itself, as "<s> $A </s>"."""
    inner = tokenizer_of(kind)
    ids = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
    inner.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=ids)
    return wrapped(inner, eos, pad, template)


def only_row(results: list[Any]) -> TokenRow:
    """The one row of the one sample."""
    assert len(results) == 1 and isinstance(results[0], list) and len(results[0]) == 1, results
    row: TokenRow = results[0][0]
    return row


def labels_of(ids: list[int], target: list[bool]) -> list[int]:
    """Nothing comes before the first token, so it is never a target."""
    return [token if mine and place else IGNORE_INDEX for place, (token, mine) in enumerate(zip(ids, target))]  # noqa: B905


def cases() -> list[Any]:
    return [
        pytest.param(kind, template, name, id=f"{kind}-{template}-{name.replace(' ', '_')}")
        for kind in TOKENIZERS
        for template in TEMPLATES
        for name in (ALTERNATING if template == "mistral" else {**ALTERNATING, **OTHERS})
    ]


@pytest.mark.parametrize(("kind", "template", "name"), cases())
def test_dialogue_has_the_template_s_tokens_and_the_assistant_s_targets(kind: str, template: str, name: str) -> None:
    tokenizer, turns = made(kind, template), {**ALTERNATING, **OTHERS}[name]
    messages = [{"role": role, "content": content} for role, content in turns]
    pieces = TEMPLATES[template][1](turns)
    text = "".join(piece for piece, _ in pieces)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    ids, offsets = offsets_of(tokenizer, text)
    row = only_row(tokenise([ChatSample(tuple(turns))], tokenizer, 8192))
    assert row["input_ids"].tolist() == tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"] == ids
    assert row["labels"].tolist() == labels_of(ids, covered(offsets, spans_of(pieces)))
    assert row["labels"].dtype == row["input_ids"].dtype == np.int32 and row["cut"] == 0


@pytest.mark.parametrize("template", TEMPLATES)
def test_targets_are_what_generation_has_to_give(template: str) -> None:
    """By prompt and continuation: what follows the prompt that a chat would be asked with, up to the end token."""
    tokenizer = made("byte-level", template)
    for name, turns in ALTERNATING.items():
        if turns[-1][0] != "assistant":
            continue
        messages = [{"role": role, "content": content} for role, content in turns]
        asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        row = only_row(tokenise([ChatSample(tuple(turns))], tokenizer, 8192))
        ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
        if ids[: len(asked)] != asked:  # a merge over the border, as of "\n\n" and a break that the answer begins with
            assert name in ("spaces", "only spaces")
            continue
        learned = labels[len(asked) :]
        end = max(place for place, token in enumerate(learned) if token != IGNORE_INDEX) + 1
        assert learned[:end] == ids[len(asked) : len(asked) + end] and learned[end - 1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[len(asked) + end :]).strip() == ""


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_padding_token_has_no_say_in_tokens_and_targets(kind: str, tmp_path: Path) -> None:
    samples = [ChatSample(tuple(turns)) for turns in ALTERNATING.values()]
    same, other = made(kind, "chatml"), made(kind, "chatml", "<|endoftext|>")
    assert same.pad_token_id == same.eos_token_id != other.pad_token_id
    same.save_pretrained(str(tmp_path))
    for results in zip(
        *(tokenise(samples, one, 8192) for one in (same, other, load_tokenizer(str(tmp_path)))), strict=True
    ):
        rows = [only_row([result]) for result in results]
        assert len({(row["input_ids"].tobytes(), row["labels"].tobytes()) for row in rows}) == 1


def test_samples_of_all_formats_keep_their_order() -> None:
    tokenizer = made("byte-level", "chatml")
    samples: list[Any] = []
    for number, turns in enumerate(ALTERNATING.values()):
        samples += [ChatSample(tuple(turns)), PairSample(f"{number} ", "a"), InstructionSample(f"{number}", "", "b")]
    together = tokenise(samples, tokenizer, 8192)
    for sample, result in zip(samples, together, strict=True):
        alone, row = only_row(tokenise([sample], tokenizer, 8192)), only_row([result])
        assert np.array_equal(row["input_ids"], alone["input_ids"]) and np.array_equal(row["labels"], alone["labels"])


def test_template_that_refuses_turns_or_cannot_show_the_start_is_told() -> None:
    tokenizer = made("byte-level", "mistral")
    twice, first = (tokenise([ChatSample(tuple(OTHERS[name]))], tokenizer, 8192)[0] for name in list(OTHERS)[2:4])
    assert twice == first == Reason("the chat template refuses it: turns must alternate")
    headless = wrapped(
        tokenizer_of("byte-level"), "</s>", None, "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    (result,) = tokenise([ChatSample((("assistant", "a"),))], headless, 8192)
    assert result == Reason("it starts with an assistant turn, whose start the chat template does not show")


def test_template_without_an_end_token_teaches_the_text_and_the_end_of_a_dialogue() -> None:
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    plain += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = wrapped(tokenizer_of("byte-level"), "</s>", None, plain)
    row = only_row(tokenise([ChatSample((("user", "is it dull?"), ("assistant", "never 🎬")))], tokenizer, 8192))
    ids, offsets = offsets_of(tokenizer, "user: is it dull?\nassistant: never 🎬\n")
    end = tokenizer.eos_token_id
    assert row["input_ids"].tolist() == [*ids, end]
    assert row["labels"].tolist() == [*labels_of(ids, covered(offsets, [(29, 37)])), end]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_template_that_marks_what_is_generated_has_the_say(kind: str) -> None:
    marked = (
        "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}"
        "{{ 'A: ' }}{% generation %}{{ m['content'] }}{% endgeneration %}{{ '</s>' }}"
        "{% else %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    turns = [("user", "hello"), ("assistant", "it is 👍🏽"), ("user", "again"), ("assistant", "never 🎬")]
    text = "user: hello</s>assistant: it is 👍🏽</s>user: again</s>A: never 🎬</s>"
    tokenizer = with_ends(kind, "<s> $A", template=marked)
    ids, offsets = offsets_of(tokenizer, text)
    row = only_row(tokenise([ChatSample(tuple(turns))], tokenizer, 8192))
    assert row["input_ids"].tolist() == ids
    assert row["labels"].tolist() == labels_of(ids, covered(offsets, [(len(text) - 11, len(text) - 4)]))


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("template", [*TEMPLATES, None])
def test_loss_on_all_makes_every_token_but_the_first_a_target(template: str | None, loss_on: Any) -> None:
    tokenizer = made("metaspace", template)
    samples: list[Any] = [PairSample("is it ", "dull"), InstructionSample("say it", "in one word", "yes 👍🏽")]
    samples += [ChatSample(tuple(turns)) for turns in ALTERNATING.values()] if template else []
    for result in tokenise(samples, tokenizer, 8192, loss_on):
        row = only_row([result])
        every = [IGNORE_INDEX, *row["input_ids"].tolist()[1:]]
        assert (row["labels"].tolist() == every) is (loss_on == "all")


PAIRS = [
    ("what is it about?", " love and war"),
    ("the story mo", "ves, warm as it is"),  # "moves" is one token
    ("a film that ", "moves"),  # " moves" is one token
    ("", "a film"),
    ("say: ", "👍🏽 né ½"),
    ("cafe", "\u0301 it is"),  # the mark joins the letter before it
    ("👩", "\u200d👧 yes"),
    ("Q: 讲什么?\n", "\n愛と戦争。\n"),
    ("hello\n", "</s> is a token"),
    ("say </s>", "it</s>"),
]


@pytest.mark.parametrize("pattern", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("pair", PAIRS)
def test_pair_is_one_text_whose_completion_is_learned_with_eos(pair: tuple[str, str], kind: str, pattern: str) -> None:
    tokenizer = with_ends(kind, pattern)
    row = only_row(tokenise([PairSample(*pair)], tokenizer, 8192))
    ids, offsets = offsets_of(tokenizer, "".join(pair), special=True)
    target = covered(offsets, [(len(pair[0]), len("".join(pair)))])
    if ids[-1] == tokenizer.eos_token_id:
        target[-1] = True
    else:
        ids, target = [*ids, tokenizer.eos_token_id], [*target, True]
    assert row["input_ids"].tolist() == ids and row["labels"].tolist() == labels_of(ids, target)
    assert row["labels"][-1] == tokenizer.eos_token_id


def test_token_that_prompt_and_completion_share_is_a_target() -> None:
    tokenizer = with_ends("byte-level", "$A")
    for prompt, completion, shared in (("the story mo", "ves", " moves"), ("a film that ", "moves", " moves")):
        apart = [token for text in (prompt, completion) for token in tokenizer(text)["input_ids"]]
        row = only_row(tokenise([PairSample(prompt, completion)], tokenizer, 8192))
        assert row["input_ids"].tolist()[:-1] == tokenizer(prompt + completion)["input_ids"] != apart
        learned = [token for token in row["labels"].tolist() if token != IGNORE_INDEX]
        assert [tokenizer.decode([token]) for token in learned] == [shared, "</s>"]


def test_pair_that_is_cut_keeps_its_beginning_and_tells_what_is_lost() -> None:
    tokenizer = with_ends("byte-level", "<s> $A")
    pair = PairSample("what is it about? ", "love and war, never quite bright")
    whole = only_row(tokenise([pair], tokenizer, 8192))
    first = int(np.flatnonzero(whole["labels"] != IGNORE_INDEX)[0])
    for seq_len in range(1, len(whole["input_ids"]) + 3):
        (result,) = tokenise([pair], tokenizer, seq_len)
        if seq_len <= first:
            assert result == Reason(
                f"no token of the completion is left after data.seq_len ({seq_len}) has cut its "
                f"{len(whole['input_ids'])} tokens: raise it"
            )
            continue
        row = only_row([result])
        assert row["input_ids"].tolist() == whole["input_ids"].tolist()[:seq_len]
        assert row["labels"].tolist() == whole["labels"].tolist()[:seq_len]
        assert row["cut"] == max(0, len(whole["input_ids"]) - seq_len)


INSTRUCTIONS = [
    (InstructionSample("Say it.", "", "yes"), "Say it.", "### Instruction:\nSay it.\n\n### Response:\n"),
    (InstructionSample("Say it.", " \n", "yes 👍🏽"), "Say it.", "### Instruction:\nSay it.\n\n### Response:\n"),
    (
        InstructionSample("Is it dull?", "a film\nof 愛", "\nno "),
        "Is it dull?\n\na film\nof 愛",
        "### Instruction:\nIs it dull?\n\n### Input:\na film\nof 愛\n\n### Response:\n",
    ),
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("sample", "asked", "headed"), INSTRUCTIONS)
def test_instruction_is_a_dialogue_where_there_is_a_template_else_a_headed_pair(
    sample: InstructionSample, asked: str, headed: str, kind: str
) -> None:
    for template in TEMPLATES:
        tokenizer = made(kind, template)
        turns = [("user", asked), ("assistant", sample.output)]
        pieces = TEMPLATES[template][1](turns)
        ids, offsets = offsets_of(tokenizer, "".join(text for text, _ in pieces))
        row = only_row(tokenise([sample], tokenizer, 8192))
        assert row["input_ids"].tolist() == ids
        assert row["labels"].tolist() == labels_of(ids, covered(offsets, spans_of(pieces)))
    tokenizer = with_ends(kind, "<s> $A")
    ids, offsets = offsets_of(tokenizer, headed + sample.output, special=True)
    target = [*covered(offsets, [(len(headed), len(headed + sample.output))]), True]
    row = only_row(tokenise([sample], tokenizer, 8192))
    assert row["input_ids"].tolist() == [*ids, tokenizer.eos_token_id]
    assert row["labels"].tolist() == labels_of(row["input_ids"].tolist(), target)


@pytest.mark.parametrize("template", [CHATML, TEMPLATES["marked"][0]])
def test_dialogue_that_is_cut_keeps_its_beginning(template: str) -> None:
    tokenizer: PreTrainedTokenizerFast = wrapped(tokenizer_of("byte-level"), "<|im_end|>", None, template)
    sample = ChatSample(tuple(ALTERNATING["emoji"]))
    whole = only_row(tokenise([sample], tokenizer, 8192))
    first = int(np.flatnonzero(whole["labels"] != IGNORE_INDEX)[0])
    for seq_len in (first, first + 1, first + 20, len(whole["input_ids"]) - 1):
        (result,) = tokenise([sample], tokenizer, seq_len)
        if seq_len == first:
            assert isinstance(result, Reason) and result.text.startswith("no token of the assistant is left")
            continue
        row = only_row([result])
        assert row["input_ids"].tolist() == whole["input_ids"].tolist()[:seq_len]
        assert row["labels"].tolist() == whole["labels"].tolist()[:seq_len]


CHARACTERS = st.one_of(
    st.sampled_from(
        ["the", " film", "moves", " ", "\n", "\u0301", "e\u0301", "👩‍👧", "½", "ﬃ", "ﷺ", "愛", "</s>", "<s>"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=3),
)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=300)
@given(words=st.lists(CHARACTERS, max_size=12), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_target_tokens_are_those_whose_characters_lie_in_a_span(kind: str, words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    places = sorted(min(cut, len(text)) for cut in cuts)
    spans = list(zip(places[::2], places[1::2], strict=False))
    encoding = made(kind, None).backend_tokenizer.encode(text, add_special_tokens=False)
    found = target_tokens(encoding, len(encoding.ids), spans)
    assert found.tolist() == covered(encoding.offsets, spans), (encoding.tokens, encoding.offsets, spans)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40)
@given(contents=st.lists(st.lists(CHARACTERS, max_size=4).map("".join), min_size=2, max_size=6), system=st.booleans())
def test_any_dialogue_is_learned_where_the_assistant_speaks(
    kind: str, template: str, contents: list[str], system: bool
) -> None:
    roles = [*(["system"] if system else []), *("user", "assistant") * 3]
    turns = [*zip(roles, contents, strict=False)]
    if not any(role == "assistant" for role, _ in turns):
        turns = [*turns, ("assistant", "yes")]
    tokenizer, pieces = made(kind, template), TEMPLATES[template][1](turns)
    ids, offsets = offsets_of(tokenizer, "".join(text for text, _ in pieces))
    row = only_row(tokenise([ChatSample(tuple(turns))], tokenizer, 8192))
    assert row["input_ids"].tolist() == ids
    assert row["labels"].tolist() == labels_of(ids, covered(offsets, spans_of(pieces)))
