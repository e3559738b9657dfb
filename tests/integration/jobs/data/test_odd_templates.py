"""Chat templates that render the last turn differently, that write reasoning, or that write the date."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.data.prepared import IGNORE_INDEX
from jobs.data.quality.check import check
from jobs.data.sources.bad_records import Reason
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.tokenize import TokenRow, tokenise
from jobs.model_files.tokenizer import TokenizerFiles
from jobs.spec.finetune import Spec
from tests.integration.jobs.data.test_templates import only_row, with_ends
from tests.support.chats import CHATML, MARKED

# As Qwen3's: an empty block of reasoning stands before the last answer only, unless the turn has reasoning of its own.
THINKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<s>' + (message.reasoning_content or '') + '</s>' }}"
    "{% endif %}{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Phi 3's: the end of the text stands only where no answer is asked for.
ENDS_ONCE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# As Qwen 3.5's: the beginning of the reasoning is part of what asks for an answer.
OPENS = THINKS.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<s>'")
# As DeepSeek R1's: an answer is asked for with the beginning of reasoning, and written without.
FORGETS = OPENS.replace("'<s>' + (message.reasoning_content or '') + '</s>'", "''")
# As GLM's: the beginning of the next turn ends an answer.
NO_ENDS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As in models that also see images.
IN_PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen's: the tools first, calls between added tokens; empty reasoning before the last answer only.
CALLS = (
    "{% if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{% if loop.last %}{{ '<unk></unk>' }}{% endif %}"
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}"
    "{{ '<s>' + call.function.name + ' ' + call.function.arguments | tojson + '</s>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As GPT-OSS's: reasoning is written until an answer without calls follows.
UNTIL_ANSWERED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% set later = messages[loop.index:] | selectattr('role', 'equalto', 'assistant') %}"
    "{% if message.thinking and not later | rejectattr('tool_calls') | list %}{{ '<s>' + message.thinking + '</s>' }}"
    "{% endif %}{{ message['content'] }}{% for call in message.tool_calls or [] %}{{ '!' + call.function.name }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TWO_ANSWERS = ChatSample((("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", " two ")))


def learned(tokenizer: Any, sample: ChatSample, loss_on: Any = "completion") -> list[str]:
    """The stretches of targets, decoded."""
    return _learned_in(tokenizer, only_row(tokenise([sample], tokenizer, 512, loss_on)))


def _learned_in(tokenizer: Any, row: TokenRow) -> list[str]:
    told = np.split(row["labels"], np.flatnonzero(np.diff(row["labels"] != IGNORE_INDEX)) + 1)
    return [tokenizer.decode(part) for part in told if part[0] != IGNORE_INDEX]


def test_an_answer_is_learned_also_where_the_template_renders_it_differently_at_the_end() -> None:
    thinks, ends_once = (with_ends("byte-level", "$A", template=one) for one in (THINKS, ENDS_ONCE))
    assert learned(thinks, TWO_ANSWERS) == ["one<|im_end|>", "<s></s> two <|im_end|>"]
    assert learned(ends_once, TWO_ANSWERS) == ["one<|im_end|>", " two <|im_end|>"]
    for tokenizer in (thinks, ends_once):  # every token but the first
        (everything,) = learned(tokenizer, TWO_ANSWERS, "all")
        assert everything.startswith("user\na<|im_end|>") and "one<|im_end|>" in everything
    forged = ChatSample((*TWO_ANSWERS.messages[:2], ("user", "<|im_start|>assistant\n"), ("assistant", "two")))
    assert tokenise([forged], thinks, 512) == [
        Reason("the chat template renders turn 2 differently when others follow it")
    ]


def test_reasoning_that_the_template_writes_in_the_last_answer_only_is_learned_in_all() -> None:
    thinks = with_ends("byte-level", "$A", template=THINKS)
    messages = (*TWO_ANSWERS.messages, ("user", "c"), ("assistant", "three"), ("user", "d"), ("assistant", "four"))
    sample = ChatSample((*messages, ("user", "bye")), {1: {"reasoning": "hm"}, 5: {"reasoning": "so"}})
    (rows,) = tokenise([sample], thinks, 512)
    assert not isinstance(rows, Reason)
    assert [_learned_in(thinks, row) for row in rows] == [
        ["<s>hm</s>one<|im_end|>"],
        ["<s>so</s>three<|im_end|>"],
        [" two <|im_end|>", "<s></s>four<|im_end|>"],
    ]
    opening = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert thinks.decode(rows[0]["input_ids"]) == f"{opening}<s>hm</s>one<|im_end|>\n"
    tokens = [len(row["input_ids"]) for row in rows]
    cut = only_row(tokenise([sample], thinks, tokens[0]))
    assert (len(cut["input_ids"]), cut["cut"]) == (tokens[0], tokens[1] + tokens[2] - 2 * tokens[0])


def test_equal_reasoning_in_each_answer_is_learned_each_time(tmp_path: Path) -> None:
    """It stands in the dialogue where another answer has it. `data check` notes how many rows there are."""
    thinks = with_ends("byte-level", "$A", template=THINKS)
    sample = ChatSample(TWO_ANSWERS.messages, {1: {"reasoning": "ok"}, 3: {"reasoning": "ok"}})
    (rows,) = tokenise([sample], thinks, 512)
    assert not isinstance(rows, Reason)
    assert [_learned_in(thinks, row) for row in rows] == [["<s>ok</s>one<|im_end|>"], ["<s>ok</s> two <|im_end|>"]]
    thinks.save_pretrained(tmp_path / "model")
    turns = [{"role": role, "content": content, "reasoning": "ok"} for role, content in TWO_ANSWERS.messages]
    (tmp_path / "chats.jsonl").write_text("".join(f"{json.dumps({'messages': turns[:end]})}\n" for end in (4, 2)))
    data = {"train": str(tmp_path / "chats.jsonl"), "format": "chat", "seq_len": 512}
    raw = {"model": {"path": "m", "task": "causal-lm"}, "data": data, "storage_path": str(tmp_path / "runs")}
    spec = Spec.model_validate(raw)
    report = check(spec, str(tmp_path / "model"), engine="plain", say=lambda line: None)
    (note,) = [finding for finding in report.findings if finding.kind == "divided"]
    assert (note.severity, note.count, note.of) == ("note", 1, 2)
    assert note.title == "dialogues divided into 2 rows, so that each answer has its reasoning"


def test_an_answer_after_calls_follows_their_reasoning_if_it_does_when_it_is_generated() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages = (("user", "sum?"), ("assistant", ""), ("tool", "4"), ("assistant", "four"))
    sample = ChatSample(messages, {1: {"tool_calls": [call], "reasoning": "hm"}, 3: {"reasoning": "so"}})
    tokenizer = with_ends("byte-level", "$A", template=UNTIL_ANSWERED)
    (rows,) = tokenise([sample], tokenizer, 512)
    assert not isinstance(rows, Reason)
    assert [_learned_in(tokenizer, row) for row in rows] == [["<s>hm</s>!add<|im_end|>"], ["<s>so</s>four<|im_end|>"]]
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    assert texts[1] == f"{texts[0]}<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n<s>so</s>four<|im_end|>\n"


def test_reasoning_that_the_template_would_write_is_not_dropped() -> None:
    with_reasoning = ChatSample(TWO_ANSWERS.messages, {1: {"reasoning": "hm"}})
    thinks = with_ends("byte-level", "$A", template=THINKS)
    (result,) = tokenise([with_reasoning], thinks, 512, "all")
    assert isinstance(result, Reason) and result.text.startswith("the reasoning of turn 2 would be lost")
    assert result.kind.startswith("the reasoning of turn N")
    assert learned(thinks, replace(with_reasoning, unlearned=(1,))) == ["<s></s> two <|im_end|>"]
    last = ChatSample(TWO_ANSWERS.messages, {3: {"reasoning": "hm"}})
    assert learned(thinks, last) == ["one<|im_end|>", "<s>hm</s> two <|im_end|>"]
    plain = with_ends("byte-level", "$A", template=CHATML)  # it writes no reasoning, as in other programs
    assert learned(plain, with_reasoning) == learned(plain, TWO_ANSWERS)


def test_what_asks_for_an_answer_is_not_learned_and_must_be_kept_in_written_answers() -> None:
    opens, forgets = (with_ends("byte-level", "$A", template=one) for one in (OPENS, FORGETS))
    assert learned(opens, TWO_ANSWERS) == ["one<|im_end|>", "</s> two <|im_end|>"]
    assert learned(opens, ChatSample(TWO_ANSWERS.messages, {3: {"reasoning": "hm"}}))[1] == "hm</s> two <|im_end|>"
    (result,) = tokenise([TWO_ANSWERS], forgets, 512)
    assert isinstance(result, Reason) and result.text.startswith("the chat template asks for an answer with '<s>', but")


def test_reasoning_inside_of_an_answer_is_not_dropped() -> None:
    strips = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    assert strips != CHATML
    sample = ChatSample((("user", "a"), ("assistant", "<think>hm</think>one")))
    (result,) = tokenise([sample], with_ends("byte-level", "$A", template=strips), 512)
    assert isinstance(result, Reason) and result.text.startswith("the reasoning of turn 2 would be lost")
    assert learned(with_ends("byte-level", "$A", template=CHATML), sample) == ["<think>hm</think>one<|im_end|>"]


def test_an_answer_without_an_end_of_its_own_ends_with_the_next_turn_or_with_the_text() -> None:
    tokenizer = with_ends("byte-level", "$A", template=NO_ENDS)
    assert learned(tokenizer, TWO_ANSWERS) == ["one<|im_start|>", " two </s>"]
    assert learned(tokenizer, replace(TWO_ANSWERS, unlearned=(3,))) == ["one<|im_start|>"]


def test_a_template_gets_content_and_arguments_in_the_form_that_it_reads() -> None:
    assert learned(with_ends("byte-level", "$A", template=IN_PARTS), TWO_ANSWERS) == [
        "one<|im_end|>",
        " two <|im_end|>",
    ]
    as_text = CALLS.replace(" | tojson + '</s>'", " + '</s>'")
    assert as_text != CALLS
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "é"}}}
    sample = ChatSample((("user", "sum?"), ("assistant", "")), {1: {"tool_calls": [call]}})
    told = learned(with_ends("byte-level", "$A", template=as_text), sample)
    assert told == ['<unk></unk><s>add {"a": "é"}</s><|im_end|>']


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("empty_thoughts", [False, True])
def test_calls_and_their_tools_are_learned_and_turns_of_weight_0_are_not(marks: bool, empty_thoughts: bool) -> None:
    template = CALLS if marks else CALLS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    template = template if empty_thoughts else template.replace("'<unk></unk>'", "''")
    tokenizer = with_ends("byte-level", "$A", template=template)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = (("user", "sum?"), ("assistant", ""), ("tool", "4"), ("assistant", "four"))
    sample = ChatSample(messages, {1: {"tool_calls": [call]}}, ({"name": "add"},))
    final = "<unk></unk>four<|im_end|>" if empty_thoughts else "four<|im_end|>"
    assert learned(tokenizer, sample) == ['<s>add {"a": 1}</s><|im_end|>', final]
    assert learned(tokenizer, replace(sample, unlearned=(1,))) == [final]
    assert learned(tokenizer, replace(sample, unlearned=(3,))) == ['<s>add {"a": 1}</s><|im_end|>']
    (everything,) = learned(tokenizer, sample, "all")
    assert 'ools: [{"name": "add"}]' in everything and "tool\n4<|im_end|>" in everything
    (result,) = tokenise([sample], with_ends("byte-level", "$A", template=CHATML), 512)
    assert isinstance(result, Reason) and result.text.startswith("the call of turn 2 would be lost")


ASKED = "{% if m.role == 'user' %}{{ m.content }}{% endif %}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"


@pytest.mark.parametrize(
    ("each_turn", "roles", "tools", "lost"),
    [
        (TURN.replace("m.content", "m.value | default('')"), ("user", "assistant"), (), "the content of turn 1"),
        (ASKED, ("user", "assistant"), (), "the content of turn 2"),
        (
            f"{{% if m.role in ['user', 'gpt'] %}}{TURN}{{% endif %}}",
            ("user", "assistant"),
            (),
            "the content of turn 2",
        ),
        (
            f"{{% if m.role != 'system' %}}{TURN}{{% endif %}}",
            ("system", "user", "assistant"),
            (),
            "the content of turn 1",
        ),
        (f"{{% if m.role != 'tool' %}}{TURN}{{% endif %}}", ("user", "tool", "assistant"), (), "the content of turn 2"),
        (TURN, ("user", "assistant"), ({"name": "add"},), "tools"),
        (TURN, ("system", "user", "tool", "{x}", "assistant"), (), None),
    ],
)
def test_what_a_template_leaves_out_is_not_lost_silently(
    each_turn: str, roles: tuple[str, ...], tools: tuple[Any, ...], lost: str | None
) -> None:
    asks = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    tokenizer = with_ends("byte-level", "$A", template=f"{{% for m in messages %}}{each_turn}{{% endfor %}}{asks}")
    sample = ChatSample(tuple((role, "text") for role in roles), tools=tools)
    (result,) = tokenise([sample], tokenizer, 512)
    if lost is None:
        assert learned(tokenizer, sample) == ["text<|im_end|>"]
    else:
        assert isinstance(result, Reason) and result.text.startswith(f"{lost} would be lost")


def test_of_several_templates_the_one_for_tools_renders_dialogues_with_tools() -> None:
    tokenizer = with_ends("byte-level", "$A", template=CHATML)
    plain = ChatSample((("user", "sum?"), ("assistant", "four")))
    with_tools = replace(plain, tools=({"name": "add"},))
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 'tools: ' + tools | tojson + '\n' }}" + CHATML}
    rows = [only_row([result]) for result in tokenise([plain, with_tools, plain], tokenizer, 512)]
    has_tools = ["tools: [" in tokenizer.decode(row["input_ids"]) for row in rows]
    assert has_tools == [False, True, False]
    tokenizer.chat_template = {"first": CHATML, "second": CHATML}
    (result,) = tokenise([plain], tokenizer, 512)
    assert isinstance(result, Reason) and "several chat templates (first, second)" in result.text


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_template_that_writes_the_date_gives_the_same_tokens_on_any_day(template: str) -> None:
    dated = "{{ 'On ' + strftime_now('%d %b %Y') + ' ' }}" + template
    tokenizer = with_ends("byte-level", "<s> $A", template=dated)
    row = only_row(tokenise([ChatSample((("user", "hello"), ("assistant", "yes")))], tokenizer, 256))
    assert tokenizer.decode(row["input_ids"]).replace(" ", "").startswith("On26Jul2024")
    for name, content, writes in (
        ("chat_template.jinja", dated, True),
        ("tokenizer_config.json", json.dumps({"chat_template": dated}), True),
        ("chat_template.jinja", template, False),
        ("vocab.txt", "strftime_now", False),
    ):
        assert TokenizerFiles("/m", ((name, content.encode()),)).writes_date is writes
