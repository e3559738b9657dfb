"""Failures of the table of `bench.failures` that no other test plants; the whole table runs as a benchmark."""

from __future__ import annotations

import pathlib

import pytest

from bench.failures.cases import CASES
from bench.failures.given import Workshop
from bench.failures.judging import problems
from bench.failures.running import run_case

NAMES = (
    "prepared rows gone before training",
    "gzip cut short",
    "metric is NaN",
    "GPU memory in the update",
    "no compiler for the offloaded optimizer",
    "worker gets little of its core",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("planted"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_planted_failure_is_named_and_acted_on_without_a_useless_restart(name: str, place: Workshop) -> None:
    (case,) = [case for case in CASES if case.name == name]
    seen = run_case(case, place)
    assert not problems(case.expected, seen), seen.output


def test_a_failure_that_is_planted_as_another_one_is_not_right(tmp_path: pathlib.Path) -> None:
    """The judgement is not one that every run passes."""
    misspelt, empty = (next(case for case in CASES if case.name == name) for name in ("misspelt field", "empty file"))
    seen = run_case(misspelt, Workshop(tmp_path))
    assert not problems(misspelt.expected, seen)
    assert problems(empty.expected, seen)
