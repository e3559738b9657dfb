"""What is written is JSON for every reader, and our own readers get the same numbers back."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import pytest
from pydantic_core import from_json

from jobs.storage import strict_json

NUMBERS = {"loss": math.nan, "data": {"record": [math.inf, -math.inf, (math.nan, 1.5)]}, "message": "the loss is NaN"}


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def test_numbers_that_are_not_finite_are_written_as_strings_and_read_as_numbers() -> None:
    text = strict_json.exact(NUMBERS)
    written = {"loss": "NaN", "data": {"record": ["Infinity", "-Infinity", ["NaN", 1.5]]}}
    assert strictly(text) == {**written, "message": "the loss is NaN"}
    found = strict_json.read(text.encode())
    assert repr(found) == repr(strict_json.read(json.dumps(NUMBERS).encode())), "as earlier releases wrote it"
    assert math.isnan(found["loss"]) and found["data"]["record"][:2] == [math.inf, -math.inf]
    assert found["message"] == "the loss is NaN"


TEXTS = {"label": "NaN", "NaN": ["Infinity", "-Infinity", 'a "NaN"', "\\"], "loss": math.nan, "low": -math.inf}


def test_a_text_of_the_same_letters_stays_a_text() -> None:
    """Such as the name of a class. Other readers get the text, too."""
    text = strict_json.exact(TEXTS)
    assert strictly(text) == {**TEXTS, "loss": "NaN", "low": "-Infinity"}
    for found in (strict_json.read(text.encode()), from_json(strict_json.with_numbers(text.encode()))):
        assert repr(found) == repr(TEXTS)
    assert repr(strict_json.read(b'{"NaN": "NaN", "a": 1}')) == "{'NaN': nan, 'a': 1}", "as an earlier release wrote it"


@pytest.mark.timeout(20)
def test_a_string_that_is_never_closed_takes_linear_time() -> None:
    with pytest.raises(ValueError, match="Unterminated"):
        strict_json.read(b'["NaN", "' + b'\\"' * 500_000)


def test_programs_get_null_instead_of_numbers_that_are_not_finite() -> None:
    text = strict_json.for_programs(NUMBERS)
    assert strictly(text) == {"loss": None, "data": {"record": [None, None, [None, 1.5]]}, "message": "the loss is NaN"}
