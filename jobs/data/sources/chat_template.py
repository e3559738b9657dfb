"""A tokenizer's chat template: in which form it reads dialogues, what it leaves out, and where answers stand."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from jobs.data.sources.assistant_spans import (
    PROBE,
    REFUSED,
    Frame,
    Opening,
    Span,
    Turn,
    assistant_spans,
    closed_spans,
    closing_of,
    frame_of,
    framed_spans,
    generated_span,
    header_spans,
    opening_of,
    rendered,
)
from jobs.data.sources.bad_records import Rejected
from jobs.data.sources.dialogues import REASONING, TOOLS, ChatSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# The date that templates write in place of today's, so that equal data has equal tokens on any day. Llama 3's template
# has it for programs without a clock.
DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"\bstrftime_now\(\s*(['\"])(.*?)\1\s*\)")
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\b")


class ChatTemplate:
    """A chat template, whose properties are found by rendering small dialogues, because a template is a program."""

    def __init__(self, tokenizer: Tokenizer, with_tools: bool = False) -> None:
        """Take the template of a tokenizer that has one.

        Args:
            with_tools: of several, take the one for dialogues with functions that the model may call.

        Raises:
            Rejected: the tokenizer has several, and none is the default.
        """

        def on_that_day(call: re.Match[str]) -> str:
            return json.dumps(DATE.strftime(call[2]))

        try:
            text = tokenizer.get_chat_template(tools=[] if with_tools else None)
        except ValueError as error:
            several = ", ".join(tokenizer.chat_template)
            what = f"the tokenizer has several chat templates ({several}), of which none is the default"
            raise Rejected(f"{what}: give one in model.chat_template", what) from error
        text = _DATE_CALL.sub(on_that_day, text)
        self._apply = functools.partial(tokenizer.apply_chat_template, chat_template=text)
        self._special = tokenizer.all_special_tokens
        self._ends = tuple({*self._special, *tokenizer.get_added_vocab()})
        self._roles: dict[str, bool] = {}
        self.marks_answers = bool(_GENERATION_BLOCK.search(text))

    def turns(self, sample: ChatSample) -> list[Turn]:
        """Return the turns of a dialogue as the template reads them."""
        return _turns(sample, self._reads_parts, self._reads_calls == "text")

    def marked(self, sample: ChatSample) -> Any:
        """Tokenise with a template that marks answers; returns `input_ids` and `assistant_masks`.

        Raises:
            Rejected: the template rejects the dialogue.
        """
        try:
            return self._apply(
                self.turns(sample),
                tools=list(sample.tools) or None,
                return_dict=True,
                return_assistant_tokens_mask=True,
                tokenizer_kwargs={"verbose": False},
            )
        except Exception as error:  # a template is a program and may raise anything
            raise Rejected(f"{REFUSED}: {error}", REFUSED) from error

    def text_of(self, sample: ChatSample) -> str:
        """Render a dialogue. Raises Rejected."""
        return rendered(self.turns(sample), functools.partial(self._render, tools=sample.tools), False)

    def answers_in(self, sample: ChatSample) -> tuple[str, list[Span], bool]:
        """Render a dialogue with a template that does not mark answers.

        Returns:
            The text, the spans of the answers that are learned, and whether the last one lacks an end.

        Raises:
            Rejected: the template rejects the dialogue, or the answers cannot be found in what it writes.
        """
        turns, render = self.turns(sample), functools.partial(self._render, tools=sample.tools)
        learned = [number for number in sample.answers if number not in sample.unlearned]

        def of_learned(found: tuple[str, list[Span]] | None) -> tuple[str, list[Span]] | None:
            if found is None:
                return None
            text, spans = found
            return text, [span for number, span in zip(sample.answers, spans, strict=True) if number in learned]

        found = of_learned(framed_spans(turns, render, self._frame)) if self._frame else None
        if found is None:
            try:
                found = assistant_spans(turns, learned, render, self._ends)
            except Rejected:
                if learned == [len(turns) - 1] and len(turns) > 1:
                    found = generated_span(turns, REASONING, render, self._ends)
                if found is None and self._edges:
                    found = of_learned(header_spans(turns, render, *self._edges))
                if found is None:
                    raise
        return closed_spans(*found, self._stops)

    def divided(self, sample: ChatSample, whole: bool) -> list[ChatSample]:
        """Divide a dialogue so that each answer is learned where the template writes its reasoning.

        Most templates of reasoning models leave out the reasoning before the last question. So an earlier answer is
        learned from the dialogue as far as this answer, which is what the model is given when it generates one.

        Args:
            whole: it may not be divided, because what several parts have would be learned several times.

        Raises:
            Rejected: the template leaves out a turn, a call, tools, or reasoning that it writes in other answers.
        """
        for number, (role, content) in enumerate(sample.messages):
            if content.strip() and not self._writes_turns_of(role):
                what_to_do = "write it into a turn of another role, or give a template in model.chat_template"
                raise _loss("content", number, f"writes no turn of the role {role!r}: {what_to_do}")
        if sample.calling and self._reads_calls is None:
            raise _loss(
                "call",
                sample.calling[0],
                "writes none: write it as text into content, or give a template in model.chat_template",
            )
        if sample.tools and not self._writes_tools:
            what = f"{TOOLS} would be lost, because the chat template writes none"
            raise Rejected(f"{what}: write them as text into content, or give a template in model.chat_template", what)
        own = sample.reasoning if sample.reasoning and self._writes_reasoning else []
        thoughts = {*sample.inline_reasoning, *own}
        parts, left = list[ChatSample](), [number for number in sample.answers if number not in sample.unlearned]
        while thoughts.intersection(left):
            part = sample if whole else sample.until(left[-1])
            text = self.text_of(part.with_reasoning(_mark_of))
            lost = [number for number in left if number in thoughts and _mark_of(number) not in text]
            if lost and (whole or left[-1] in lost):
                other = "end a record with this turn" if whole else "correct a copy, and give it in model.chat_template"
                what_to_do = f"{other}, or give this turn weight 0"
                raise _loss("reasoning", lost[-1], f"leaves it out here: {what_to_do}")
            parts.append(part.learning({*left} - {*lost}))
            left = lost
        return parts[::-1] or [sample]

    def _render(self, turns: Sequence[Turn], header: bool, tools: Sequence[Any] = ()) -> str:
        text = self._apply(turns, tokenize=False, add_generation_prompt=header, tools=list(tools) or None)
        return cast(str, text)

    def _writes(self, turns: list[Turn], tools: Sequence[Any] = ()) -> bool | None:
        """Whether the template writes PROBE when it renders these turns; None: the template refuses them."""
        try:
            return PROBE in self._render(turns, False, tools)
        except Exception:  # a template is a program and may raise anything
            return None

    def _writes_turns_of(self, role: str) -> bool:
        """Whether the template writes turns of this role at some place in a dialogue.

        True also if it refuses every dialogue with such a turn: rendering then gives the template's reason.
        """
        if role not in self._roles:
            found = [self._writes(self.turns(ChatSample(*form))) for form in _forms(role)]
            self._roles[role] = True in found or False not in found
        return self._roles[role]

    @functools.cached_property
    def _writes_tools(self) -> bool:
        """Whether the template writes the schemas of functions. True also if it refuses every dialogue with them."""
        parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}, "required": ["a"]}
        function = {"name": PROBE, "description": PROBE, "parameters": parameters}
        schema = {"type": "function", "function": function}
        dialogue = (("user", "q"), ("assistant", "a"))
        found = [
            self._writes(self.turns(ChatSample(messages)), [tool])
            for messages in (dialogue, (("system", "s"), *dialogue))
            for tool in (schema, function)
        ]
        return True in found or False not in found

    @functools.cached_property
    def _reads_parts(self) -> bool:
        """Whether the template reads content as a list of parts, as many of models that also see images."""
        sample = ChatSample((("user", "q"), ("assistant", PROBE)))
        return not self._writes(sample.turns()) and bool(self._writes(_turns(sample, True, False)))

    @functools.cached_property
    def _reads_calls(self) -> Literal["object", "text"] | None:
        """In which form the template reads the arguments of calls; None: it writes no calls."""
        sample = ChatSample(*_calling(PROBE, "r"))
        if self._writes(_turns(sample, self._reads_parts, False)):
            return "object"
        return "text" if self._writes(_turns(sample, self._reads_parts, True)) else None

    @functools.cached_property
    def _writes_reasoning(self) -> bool:
        """Whether the template writes the reasoning of the last answer."""
        sample = ChatSample((("user", "q"), ("assistant", "a")), {1: {"reasoning": PROBE}})
        return bool(self._writes(self.turns(sample)))

    def _probed(self, turns: Sequence[Turn], header: bool) -> str:
        messages = tuple((turn["role"], turn["content"]) for turn in turns)
        return self._render(self.turns(ChatSample(messages)), header)

    @functools.cached_property
    def _frame(self) -> Frame | None:
        return frame_of(self._probed, self._ends)

    @functools.cached_property
    def _stops(self) -> tuple[str, ...]:
        """The tokens that end generation. Other added tokens, as those around calls, may be part of an answer."""
        return self._ends if self._edges is None else (*self._special, *self._edges[1])

    @functools.cached_property
    def _edges(self) -> tuple[Opening, frozenset[str]] | None:
        """What the template writes before and after an answer; None if it rejects the dialogues that show this."""
        try:
            return opening_of(self._probed), closing_of(self._probed, self._ends)
        except Rejected:
            return None


def _turns(sample: ChatSample, in_parts: bool, arguments_as_text: bool) -> list[Turn]:
    turns = sample.turns()
    for turn in turns:
        if in_parts:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
        if arguments_as_text and "tool_calls" in turn:
            turn["tool_calls"] = [_with_text(call) for call in turn["tool_calls"]]
    return turns


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


Form = tuple[tuple[tuple[str, str], ...], dict[int, dict[str, Any]]]  # messages and extras of a ChatSample


def _calling(name: str, result: str, role: str = "tool") -> Form:
    """Make a small dialogue with a call of a function and its result."""
    call = {"id": "aaaaaaaa1", "type": "function", "function": {"name": name, "arguments": {"a": 1}}}
    messages = (("user", "q"), ("assistant", ""), (role, result), ("assistant", "a"))
    return messages, {1: {"tool_calls": [call]}, 2: {"name": "f", "tool_call_id": "aaaaaaaa1"}}


def _forms(role: str) -> list[Form]:
    """Make small dialogues with PROBE as the content of a turn of this role, at places where templates expect it."""
    turn, user, assistant = (role, PROBE), ("user", "q"), ("assistant", "a")
    if role == "user":
        return [((turn, assistant), {})]
    if role == "assistant":
        return [((user, turn), {})]
    places = [(turn, user, assistant), (user, turn, assistant), (turn, assistant), (user, assistant, turn, assistant)]
    places.append((user, assistant, turn, user, assistant))
    return [*((messages, {}) for messages in places), _calling("f", PROBE, role)]


def _mark_of(number: int) -> str:
    """Return a text for the reasoning of a turn that stands nowhere else."""
    return f"{PROBE}{number}{PROBE}"


def _loss(what: str, number: int, why: str) -> Rejected:
    texts = (f"the {what} of turn {name} would be lost, because the chat template {why}" for name in (number + 1, "N"))
    return Rejected(*texts)
