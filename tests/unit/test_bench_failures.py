"""The table of planted failures is complete, and its judgement sees a wrong cause, act or number of starts."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpus
from bench.failures.cases import CASES
from bench.failures.judging import Expected, Kind, Seen, problems
from bench.failures.planting import ACTS, FACTORS, Plant, as_variable
from jobs.run.outcome import Outcome, Status

EXPECTED = Expected(
    0, ("rank 1", "ran out"), ("set train.x",), {"status": "succeeded", "rank": None}, ("out_of_memory train.x",), 2
)


def remedy(**data: Any) -> dict[str, Any]:
    return {"kind": "remedy", "message": "rank 1 ran out: set train.x", "data": {"remedy": "out_of_memory", **data}}


def seen(**changes: Any) -> Seen:
    outcome = Outcome(status=Status.SUCCEEDED, ended_at=datetime.datetime.now(datetime.UTC))
    events = (remedy(field="train.x", effect="again"), remedy(field="train.x", seconds=3.0))
    return Seen(**{"exit": 0, "output": "ok", "outcome": outcome, "events": events, "starts": 2, **changes})


def test_a_run_as_expected_has_no_problem() -> None:
    assert problems(EXPECTED, seen()) == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"exit": 1}, "act"),
        ({"events": (remedy(field="train.y"),)}, "act"),
        ({"events": (remedy(field="train.x"), remedy(field="train.x", effect="again"))}, "act"),
        ({"starts": 3}, "starts"),
        ({"outcome": None}, "cause"),
        ({"output": "ok\nTraceback (most recent call last):"}, "output"),
        ({"output": "/lib/site-packages/torch/x.py:3: UserWarning: slow"}, "output"),
    ],
)
def test_what_is_wrong_is_said_by_its_part(change: dict[str, Any], part: str) -> None:
    assert {one.partition(":")[0] for one in problems(EXPECTED, seen(**change))} == {part}


def test_a_cause_or_an_advice_that_is_not_said_is_a_problem() -> None:
    silent = remedy(field="train.x") | {"message": "trouble"}
    wrong = problems(EXPECTED, seen(events=(silent,)))
    assert [one.partition(":")[0] for one in wrong] == ["cause", "cause", "advice"]


def test_the_table_has_cases_of_all_kinds_under_their_own_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30
    assert {case.kind for case in CASES} == {case.kind for case in CASES if case.quick} == set(Kind)
    for case in CASES:
        assert case.expected.says and (case.spoil or case.changes or case.plants or case.expected.exit), case.name


def test_every_plant_is_known_and_travels_as_text(tmp_path: Path) -> None:
    plants = [plant for case in CASES for plant in case.plants]
    plants += [plant for case in gpus.CASES for plant in case.plants]
    assert {plant.what for plant in plants} == {*ACTS, *FACTORS}
    assert json.loads(as_variable([Plant("step", "kill")], tmp_path))["plants"][0]["steps"] == []
