"""Reads dialogues in the forms of common data sets, and gives their turns to chat templates. Light to import."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.data.sources.bad_records import Rejected
from jobs.data.sources.records import is_unicode

TOOLS = "tools"  # the key, beside the messages, of the functions that the model may call
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of the reasoning before an answer
CALLS = ("tool_calls", "function_call")  # keys of a turn that calls functions
# ShareGPT's names of the two roles, and the names that chat templates use.
_OTHER_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class ChatSample:
    """A dialogue with at least one assistant turn.

    Attributes:
        messages: (role, content) of each turn.
        extras: what else templates read in a turn, by its number from 0: `reasoning`, `tool_calls` in the form of
            OpenAI with arguments as an object, and `name` and `tool_call_id` of a result.
        tools: schemas of the functions that the model may call.
        unlearned: numbers of the assistant turns that have weight 0, so that they are only read.
    """

    messages: tuple[tuple[str, str], ...]
    extras: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    tools: tuple[Any, ...] = ()
    unlearned: tuple[int, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each turn: its reasoning, its content and its calls as JSON."""
        return tuple(self._text_of(number) for number in range(len(self.messages)))

    @property
    def answers(self) -> list[int]:
        """Numbers of the assistant turns."""
        return [number for number, (role, _) in enumerate(self.messages) if role == "assistant"]

    @property
    def reasoning(self) -> list[int]:
        """Numbers of the turns that have reasoning of their own."""
        return [number for number, extra in self.extras.items() if "reasoning" in extra]

    @property
    def inline_reasoning(self) -> list[int]:
        """Numbers of the assistant turns that have reasoning in their content, as `<think>...</think>`."""
        return [number for number in self.answers if _around_reasoning(self.messages[number][1]) is not None]

    def with_reasoning(self, text: Callable[[int], str]) -> ChatSample:
        """Return the dialogue with other texts in place of reasoning. `text`: returns that of a turn."""
        extras = {
            number: {**extra, "reasoning": text(number)} if "reasoning" in extra else extra
            for number, extra in self.extras.items()
        }
        messages = list(self.messages)
        for number in self.answers:
            role, content = messages[number]
            if around := _around_reasoning(content):
                messages[number] = role, text(number).join(around)
        return replace(self, messages=tuple(messages), extras=extras)

    @property
    def calling(self) -> list[int]:
        """Numbers of the turns that call functions."""
        return [number for number, extra in self.extras.items() if "tool_calls" in extra]

    def turns(self) -> list[dict[str, Any]]:
        """Return the dialogue for `apply_chat_template`; templates know reasoning by different keys, so all are set."""
        turns: list[dict[str, Any]] = []
        for number, (role, content) in enumerate(self.messages):
            extra = dict(self.extras.get(number, {}))
            thought = extra.pop("reasoning", None)
            named = {} if thought is None else dict.fromkeys(REASONING, thought)
            turns.append({"role": role, "content": content, **named, **extra})
        return turns

    def until(self, number: int) -> ChatSample:
        """Return the dialogue as far as a turn, with this turn."""
        extras = {place: extra for place, extra in self.extras.items() if place <= number}
        unlearned = tuple(place for place in self.unlearned if place <= number)
        return replace(self, messages=self.messages[: number + 1], extras=extras, unlearned=unlearned)

    def learning(self, answers: Container[int]) -> ChatSample:
        """Return the dialogue with these answers learned, and no others."""
        return replace(self, unlearned=tuple(number for number in self.answers if number not in answers))

    def _text_of(self, number: int) -> str:
        extra, content = self.extras.get(number, {}), self.messages[number][1]
        calls = json.dumps(extra["tool_calls"], ensure_ascii=False) if "tool_calls" in extra else ""
        return "\n".join(filter(None, (extra.get("reasoning", ""), content, calls))) or content


def _around_reasoning(content: str) -> tuple[str, str] | None:
    """Return what stands before and after the reasoning in an answer; None if it has none."""
    before, mark, after = content.rpartition("</think>")
    opening, opened, thought = before.rpartition("<think>")
    if not mark or not thought.strip():
        return None
    return opening + opened, mark + after


def chat_of(messages: Any, tools: Any, with_nulls: bool) -> ChatSample:
    """Read a dialogue.

    Args:
        messages: a list of turns, or its JSON.
        tools: a list of schemas, or its JSON; None: there are none.
        with_nulls: the file format has given all calls and schemas the keys of the others, with null as value, as
            Parquet does. These keys are left out.

    Raises:
        Rejected: a turn lacks something, or holds something that cannot be learned.
    """
    turns = _decoded(messages, "messages is text")
    with_nulls_in_turns = with_nulls and not isinstance(messages, str)
    if not isinstance(turns, list) or not turns:
        raise Rejected("messages is not a list of {role, content} with at least one turn")
    turns = [_decoded(turn, f"turn {number} is text", "turn N is text") for number, turn in enumerate(turns, 1)]
    read = [_turn(number, turn, with_nulls_in_turns) for number, turn in enumerate(turns)]
    found = tuple((role, content) for role, content, _ in read)
    extras = {number: extra for number, (_, _, extra) in enumerate(read) if extra}
    answers = [number for number, (role, _) in enumerate(found) if role == "assistant"]
    unlearned = tuple(number for number in answers if not _is_learned(number, turns[number]))
    if not answers:
        roles = ", ".join(dict.fromkeys(role for role, _ in found))
        what = "no assistant turn, so nothing to learn"
        raise Rejected(f"{what} (roles: {roles})", what)
    if len(unlearned) == len(answers):
        raise Rejected("every assistant turn has weight 0, so nothing to learn")
    return ChatSample(found, extras, _tools(tools, with_nulls), unlearned)


def _turn(number: int, turn: Any, with_nulls: bool) -> tuple[str, str, dict[str, Any]]:
    """Return a turn's role, content and extras."""
    if not isinstance(turn, dict):
        raise _in_turn(number, f"{{turn}} is a {type(turn).__name__}, expected {{role, content}}")
    if "role" not in turn and "from" in turn:  # ShareGPT's keys
        turn = {**turn, "role": _OTHER_ROLES.get(str(turn["from"]), turn["from"]), "content": turn.get("value")}
    calls = _calls(number, turn, with_nulls)
    if turn.get("content") is None and calls:
        turn = {**turn, "content": ""}
    for key in ("role", "content"):
        if key not in turn:
            there = ", ".join(map(repr, turn)) or "no keys"
            raise Rejected(f"turn {number + 1} has no {key}; it has {there}", f"turn N has no {key}")
    if isinstance(content := _joined(turn["content"]), list):
        raise _in_turn(number, "content of {turn} is a list, expected text or a list of parts of type text")
    role, content = _text(number, turn, "role"), _text(number, {"content": content}, "content")
    thought = next((key for key in REASONING if turn.get(key)), None)
    extras = {
        "reasoning": _text(number, turn, thought) if thought else "",
        "tool_calls": calls,
        **{key: _optional(number, turn, key) for key in ("name", "tool_call_id") if role in ("tool", "function")},
    }
    if calls and role != "assistant":
        raise _in_turn(number, f"{{turn}} has a call of a function, but its role is {role!r}, not 'assistant'")
    return role, content, {key: value for key, value in extras.items() if value}


_WEIGHTS: dict[object, bool] = {0: False, 1: True, "0": False, "1": True}  # True and 1.0 are equal to 1


def _is_learned(number: int, turn: Mapping[str, Any]) -> bool:
    """Whether a turn is learned: it has no weight, or the weight 1, which may also be text or a boolean.

    Raises Rejected for weights other than 0 and 1.
    """
    value = turn.get("weight")
    if value is None:
        return True
    if isinstance(value, int | float | str) and value in _WEIGHTS:
        return _WEIGHTS[value]
    what = "expected 0 or 1"
    raise Rejected(f"weight of turn {number + 1} is {value!r:.80}, {what}", f"weight of turn N, {what}")


def _text(number: int, turn: Mapping[str, Any], key: str) -> str:
    value = turn[key]
    if not isinstance(value, str):
        raise _in_turn(number, f"{key} of {{turn}} is a {type(value).__name__}, expected text")
    if not is_unicode(value):
        raise _in_turn(number, f"{key} of {{turn}} holds half of a surrogate pair, which is no character")
    return value


def _optional(number: int, turn: Mapping[str, Any], key: str) -> Any:
    """Return a value of a turn, which need not be text; "" if it is absent. Raises Rejected: it is no valid text."""
    value = turn.get(key) or ""
    return _text(number, turn, key) if isinstance(value, str) and value else value


def _joined(content: Any) -> Any:
    """Join a content that is a list of parts, if all of them are text."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if whole else content


def _calls(number: int, turn: Mapping[str, Any], with_nulls: bool) -> list[dict[str, Any]]:
    """Return a turn's calls in the form `{"type": "function", "function": {"name", "arguments"}}`, with their ids."""
    key = next((key for key in CALLS if turn.get(key)), None)
    if key is None:
        return []
    what = f"{key} of turn {number + 1} is text", f"{key} of turn N is text"
    calls = _decoded(turn[key], *what)
    with_nulls = with_nulls and not isinstance(turn[key], str)
    every = calls if isinstance(calls, list) else [calls]
    return [_call(number, key, _decoded(call, *what), with_nulls and not isinstance(call, str)) for call in every]


def _call(number: int, key: str, call: Any, with_nulls: bool) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _in_turn(number, f"{key} of {{turn}} names no function: expected {{name, arguments}}")
    given = function.get("arguments") or {}
    arguments = _decoded(given, f"arguments in {key} of turn {number + 1} are text", f"arguments in {key} are text")
    if not isinstance(arguments, dict):
        raise _in_turn(number, f"arguments in {key} of {{turn}} are a {type(arguments).__name__}, expected an object")
    if with_nulls and not isinstance(given, str):
        arguments = _without_nulls(arguments)
    named = {"id": call["id"]} if call.get("id") else {}
    named |= {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if not is_unicode(json.dumps(named, ensure_ascii=False, default=str)):
        raise _in_turn(number, f"{key} of {{turn}} holds half of a surrogate pair, which is no character")
    return named


def _tools(tools: Any, with_nulls: bool) -> tuple[Any, ...]:
    found = _decoded(tools, f"{TOOLS} is text") if tools else []
    with_nulls = with_nulls and not isinstance(tools, str)
    if isinstance(found, list):
        with_nulls = with_nulls and not any(isinstance(one, str) for one in found)
        found = [_decoded(one, f"{TOOLS} has text") for one in found]
    if not isinstance(found, Sequence) or not all(isinstance(one, dict) for one in found):
        raise Rejected(f"{TOOLS} is not a list of the functions' schemas")
    if not is_unicode(json.dumps(found, ensure_ascii=False, default=str)):
        raise Rejected(f"{TOOLS} holds half of a surrogate pair, which is no character")
    return tuple(_without_nulls(list(found)) if with_nulls else found)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _decoded(value: Any, what: str, kind: str = "") -> Any:
    """Read JSON, which stands for lists in CSV, and for objects of different keys in Parquet."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{what}, but not JSON: {error}", f"{kind or what}, but not JSON") from error


def _in_turn(number: int, what: str) -> Rejected:
    """Make the error about one turn. `what`: a sentence with `{turn}` in place of the turn; other braces are text."""
    return Rejected(what.replace("{turn}", f"turn {number + 1}"), what.replace("{turn}", "turn N"))
