"""Samples of a user's function, and why they cannot be used."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from jobs.data.sources.bad_records import BadRecord
from jobs.data.sources.formats import ClassSample, Reading
from jobs.data.sources.records import Record
from jobs.data.sources.user_code import UserCode, own_samples
from jobs.spec.data import Columns


def given(value: dict[str, Any]) -> dict[str, Any]:
    return value


def made_of(value: dict[str, Any], num_labels: int | None = None) -> Any:
    name = f"{__name__}:{given.__name__}"
    reading = Reading(name, Columns(), num_labels=num_labels)
    (found,) = own_samples(Record("f.jsonl", 7, value), reading, UserCode(name, os.getcwd(), ()))
    return found


def test_bad_samples_are_grouped_by_what_is_wrong_with_them() -> None:
    for value, what in (
        ({"text": None}, "'text' is null"),
        ({"messages": [{"role": "user"}]}, "turn N has no content"),
    ):
        found = made_of(value)
        assert isinstance(found, BadRecord) and found.kind == f"{__name__}:given returned: {what}"


def test_numbers_of_numpy_are_labels() -> None:
    assert made_of({"text": "a", "label": np.int64(2)}, num_labels=3) == ClassSample("a", 2)
