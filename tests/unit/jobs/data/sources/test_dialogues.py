"""Dialogues in the forms of common data sets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from jobs.data.sources.bad_records import BadRecord
from jobs.data.sources.content import content_hash
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.formats import Reading, sample_of
from jobs.data.sources.records import Record
from jobs.spec.data import Columns


def read(value: dict[str, Any], file: str = "f.jsonl") -> Any:
    return sample_of(Record(file, 7, value), Reading("chat", Columns()))


TALK: list[Any] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "weight": 1}]


def test_chat_is_a_list_of_turns_or_its_json() -> None:
    expected = ChatSample((("user", "hi"), ("assistant", "yo")))
    assert read({"messages": TALK}) == expected
    assert read({"messages": json.dumps(TALK)}) == expected
    thought = read({"messages": [TALK[0], {**TALK[1], "reasoning_content": "hm"}]})
    assert isinstance(thought, ChatSample) and thought.reasoning == [1]
    no_calls = [{**turn, "tool_calls": None, "function_call": {}} for turn in TALK]
    assert read({"messages": no_calls, "tools": None}) == expected
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]
    assert read({"messages": parts}) == expected
    again = [TALK[0], {"role": "assistant", "content": "no", "weight": 0}, *TALK]
    assert read({"messages": again}).unlearned == (1,)


ADD = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
NOW = {"type": "function", "function": {"name": "now", "arguments": {}}}


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ({"content": None, "tool_calls": [{"id": "c1", **ADD}]}, [{"id": "c1", **ADD}]),
        ({"content": "", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}, [ADD]),
        ({"tool_calls": json.dumps([{"name": "add", "arguments": {"a": 1}}])}, [ADD]),
        ({"content": "", "function_call": {"name": "add", "arguments": '{"a": 1}'}}, [ADD]),
        ({"content": "", "tool_calls": [{"name": "now", "arguments": ""}]}, [NOW]),
    ],
)
def test_calls_in_every_common_form_are_one(turn: dict[str, Any], calls: list[Any]) -> None:
    result = {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
    tools = [{"type": "function", "function": {"name": "add"}}]
    found = read({"messages": [TALK[0], {"role": "assistant", **turn}, result], "tools": json.dumps(tools)})
    assert isinstance(found, ChatSample), found
    assert found.extras == {1: {"tool_calls": calls}, 2: {"name": "add", "tool_call_id": "c1"}}
    assert found.turns()[1] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert found.tools == tuple(tools) and calls[0]["function"]["name"] in found.texts[1]
    other = replace(found, extras={**found.extras, 1: {"tool_calls": [{**ADD, "id": "c2"}]}})
    assert len({content_hash(one) for one in (found, other, replace(found, tools=()), replace(found, extras={}))}) == 4


def test_keys_that_parquet_adds_to_every_call_are_left_out() -> None:
    arguments = {"a": 1, "b": None, "c": {"d": None}}
    turns = [TALK[0], {**TALK[1], "tool_calls": [{"name": "add", "arguments": arguments}], "reasoning_content": None}]
    value = {"messages": turns, "tools": [{"name": "add", "parameters": {"x": None, "y": "text"}}]}
    for file, left in (("x.parquet", {"a": 1, "c": {}}), ("x.jsonl", arguments)):
        found = read(value, file)
        assert found.extras[1]["tool_calls"][0]["function"]["arguments"] == left
        assert ("x" in found.tools[0]["parameters"]) is (file == "x.jsonl")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one turn"),
        ("hello", "not JSON"),
        ([*TALK, "x"], "turn 3 is text, but not JSON"),
        ([{"speaker": "human", "value": "hi"}], "turn 1 has no role; it has 'speaker', 'value'"),
        ([{"role": "user"}], "turn 1 has no content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content of turn 1 is a list"),
        (TALK[:1], r"no assistant turn.*roles: user"),
        (
            [TALK[0], {**TALK[1], "content": None, "tool_calls": [{"id": "1"}]}],
            "tool_calls of turn 2 names no",
        ),
        ([TALK[0], {**TALK[1], "function_call": {"name": "f", "arguments": "{"}}], "of turn 2 are text, but not JSON"),
        ([TALK[0], {**TALK[1], "tool_calls": [{"name": "f", "arguments": [1]}]}], "of turn 2 are a list, expected an"),
        ([{**TALK[0], "tool_calls": [ADD]}, TALK[1]], "turn 1 has a call of a function, but its role is 'user'"),
        ([TALK[0], {**TALK[1], "reasoning": "\ud800"}], "reasoning of turn 2 holds half of a surrogate pair"),
        ([TALK[0], {**TALK[1], "weight": 0}], "every assistant turn has weight 0"),
    ],
)
def test_chat_without_its_parts_is_refused(messages: Any, reason: str) -> None:
    row = read({"messages": messages})
    assert isinstance(row, BadRecord) and not row.fatal
    assert re.search(reason, row.reason)


def test_names_and_ids_that_are_no_unicode_are_refused_and_braces_in_roles_are_text() -> None:
    asked, called = TALK[0], {**TALK[1], "tool_calls": [{**ADD, "id": "\ud800"}]}
    for turns, said in (
        ([asked, called], "tool_calls of turn 2 holds half of a surrogate pair"),
        ([asked, {"role": "tool", "name": "\ud800", "content": "4"}, TALK[1]], "name of turn 2 holds half of a surr"),
        (
            [{"role": "{x}", "content": "a", "tool_calls": [ADD]}, TALK[1]],
            "turn 1 has a call of a function, but its role",
        ),
    ):
        row = read({"messages": turns})
        assert isinstance(row, BadRecord) and row.reason.startswith(said)


def test_nulls_that_stand_in_json_text_stay_also_in_parquet() -> None:
    def arguments(given: Any) -> Any:
        call = {"type": "function", "function": {"name": "f", "arguments": given}}
        row = read({"messages": [TALK[0], {**TALK[1], "tool_calls": [call]}]}, "a.parquet")
        assert isinstance(row, ChatSample)
        return row.extras[1]["tool_calls"][0]["function"]["arguments"]

    assert arguments({"city": "Paris", "unit": None}) == {"city": "Paris"}
    assert arguments('{"city": "Paris", "unit": null}') == {"city": "Paris", "unit": None}


def test_turns_calls_and_schemas_may_each_be_json() -> None:
    row = read(
        {"messages": [json.dumps(TALK[0]), {**TALK[1], "tool_calls": [json.dumps(ADD)]}], "tools": ['{"name": "f"}']}
    )
    assert isinstance(row, ChatSample) and row.tools == ({"name": "f"},) and row.calling == [1]


def test_values_that_are_nested_too_deeply_are_set_aside() -> None:
    deep: Any = None
    for _ in range(5000):
        deep = [deep]
    row = read({"messages": TALK, "tools": [{"a": deep}]}, "a.parquet")
    assert isinstance(row, BadRecord) and "nested too deeply" in row.reason


@pytest.mark.parametrize("weight", [None, 1, 1.0, "1", True, 0, 0.0, "0", False])
def test_a_weight_may_be_text_or_a_boolean(weight: Any) -> None:
    answer = {"role": "assistant", "content": "b"}
    turns = [{"role": "user", "content": "a"}, {**answer, "weight": weight}, answer]
    assert read({"messages": turns}).unlearned == (() if weight in (None, 1, "1") else (1,))


@pytest.mark.parametrize("weight", [0.25, "0.5", 2, "", [0]])
def test_another_weight_is_refused(weight: Any) -> None:
    found = read(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": weight}]}
    )
    assert isinstance(found, BadRecord)
    assert found.reason == f"weight of turn 2 is {weight!r}, expected 0 or 1"
    assert found.kind == "weight of turn N, expected 0 or 1"
