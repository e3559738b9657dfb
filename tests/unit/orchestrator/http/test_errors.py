"""What is said of a request of the wrong shape: where, what is allowed, what was given; and no secrets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from cluster.errors import Mistake
from orchestrator.api import NodeOrderSent, Priority, Submission, TenantSent, TokenSent
from orchestrator.http.errors import shape_error
from orchestrator.queue.states import State


def said_of(model: type[BaseModel], value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(value)
    return str(shape_error([{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]))


@pytest.mark.parametrize(
    ("model", "value", "said"),
    [
        (Priority, {"priority": 1001}, "body.priority: must be 1000 or less, but is 1001"),
        (Priority, {"priority": "soon"}, "body.priority: must be a whole number, but is a text of 4 characters"),
        (Priority, {"priority": None}, "body.priority: must be a whole number, but is empty"),
        (Priority, {}, "body.priority: is missing"),
        (Priority, {"priority": 1, "prio": 2}, "body.prio: there is no such key"),
        (Submission, {"specs": []}, "body.specs: must be a list of 1 or more, but is a list of 0"),
        (Submission, {"specs": [1]}, "body.specs[0]: must be an object with keys, but is 1"),
        (Submission, {"specs": "many"}, "body.specs: must be a list (in square brackets), but is a text of"),
        (Submission, {"specs": [{}], "key": ""}, "body.key: must be some text, but is empty"),
        (NodeOrderSent, {"order": "stop"}, "body.order: must be 'use', 'cordon' or 'drain', but is a text of 4"),
        (NodeOrderSent, {"order": "use", "reason": "x" * 501}, "text of 500 characters or fewer, but is a text of 501"),
        (TenantSent, {"weight": 0}, "body.weight: must be greater than 0"),
        (TokenSent, {"name": "a b", "role": "member"}, "body.name: must be text of the form ^[A-Za-z0-9]"),
    ],
)
def test_a_field_says_what_is_allowed_and_what_was_given(model: type[BaseModel], value: Any, said: str) -> None:
    message = said_of(model, value)
    assert said in message and "nput should" not in message


def test_a_text_in_a_body_is_not_shown_and_one_in_an_address_is() -> None:
    assert "hunter22" not in said_of(Submission, {"specs": "hunter22", "key": 7, "colour": "hunter22"})
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(State).validate_python("asleep")
    error = {**caught.value.errors()[0], "loc": ("query", "state", 0)}
    message = str(shape_error([error]))
    assert message.startswith("query.state[0]: must be 'queued', 'starting'") and message.endswith('but is "asleep"')


def test_what_has_no_words_of_ours_keeps_those_of_the_library_and_many_are_cut() -> None:
    odd = shape_error([{"type": "odd", "loc": ("body",), "msg": "Value error, Too odd"}])
    assert str(odd) == "body: too odd" and odd.mistakes == (Mistake("too odd", "body"),)
    error = {"type": "missing", "loc": ("body", "name"), "msg": "Field required", "input": {}}
    assert shape_error([error] * 12).mistakes[-1] == Mistake("and 2 more")
