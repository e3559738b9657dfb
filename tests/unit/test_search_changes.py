"""A sweep that is changed on the way: what is asked for, what is refused, and what its driver takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, SpecError
from jobs.load import dump_spec, load_sweep
from jobs.paths import JobPaths
from jobs.search.changes import Changes, ask_to_change, more
from jobs.search.ledger import Ledger
from jobs.search.spec import Range
from tests.unit.test_search_spec import BASE, sweep_of

RATES = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}


def begun(folder: Path, **fields: Any) -> JobPaths:
    paths = JobPaths(str(folder / "found-1"))
    Path(paths.root).mkdir()
    Path(paths.spec).write_bytes(dump_spec(sweep_of(folder, BASE, algorithm="random", space=RATES, **fields)))
    return paths


def test_the_driver_takes_over_what_was_asked_for_in_its_order_and_once(tmp_path: Path) -> None:
    paths = begun(tmp_path, budget={"trials": 4})
    ask_to_change(paths, ("budget.trials=8",))
    ask_to_change(paths, ("space.learning_rate.max=5e-4", "budget.trials=6"))
    changes = Changes(paths)
    (_, first), (said, second) = changes.take()
    assert first is not None and first.budget.trials == 8
    assert said == "space.learning_rate.max=5e-4, budget.trials=6"
    assert second is not None and second.budget.trials == 6
    assert second.dimensions["learning_rate"] == Range(min=1e-5, max=5e-4, log=True)
    assert load_sweep(paths.spec) == second
    assert changes.take() == [] and not changes.any()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("algorithm=tpe", "would no longer compare"),
        ("space.learning_rate.max=1e-6", "must be less than max"),
        ("space.learning_rat.max=1e-4", "space.learning_rat"),
        ("budget.trails=9", "did you mean"),
        ("base.train.weight_decay=0.1", "would no longer compare"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_asked_for(tmp_path: Path, setting: str, said: str) -> None:
    paths = begun(tmp_path)
    with pytest.raises(SpecError) as caught:
        ask_to_change(paths, (setting,))
    assert said in str(caught.value)
    assert not Changes(paths).any()


def test_a_change_that_has_become_impossible_is_told_and_changes_nothing(tmp_path: Path) -> None:
    paths = begun(tmp_path)
    ask_to_change(paths, ("space.learning_rate.min=5e-4",))
    ask_to_change(paths, ("space.learning_rate.max=2e-4",))
    (_, first), (said, second) = Changes(paths).take()
    assert second is None and "must be less than max" in said
    assert load_sweep(paths.spec) == first


def test_one_run_is_not_changed(tmp_path: Path) -> None:
    paths = begun(tmp_path)
    sweep = load_sweep(paths.spec)
    assert sweep is not None
    Path(paths.spec).write_bytes(dump_spec(sweep.base))
    with pytest.raises(InputError, match="is no sweep"):
        ask_to_change(paths, ("seed=1",))


@pytest.mark.parametrize(
    ("budget", "added", "settings"),
    [
        ({"trials": 4}, {"count": 2}, ("budget.trials=6",)),
        ({"runs": 3.5}, {"runs": 4.0}, ("budget.runs=7.5",)),
        ({"runs": 3.5}, {"tokens": 150}, ("budget.runs=5",)),
        ({"tokens": 400}, {"runs": 2.0}, ("budget.tokens=600",)),
        ({"tokens": 400}, {"tokens": 7}, ("budget.tokens=407",)),
        ({"minutes": 10, "trials": 3}, {"minutes": 5.0, "count": 1}, ("budget.trials=4", "budget.minutes=15")),
    ],
)
def test_what_is_added_to_a_budget(
    tmp_path: Path, budget: dict[str, Any], added: dict[str, Any], settings: tuple[str, ...]
) -> None:
    given = dict.fromkeys(("runs", "count", "tokens", "minutes")) | added
    sweep = sweep_of(tmp_path, BASE, algorithm="random", space=RATES, budget=budget)
    assert more(Ledger(sweep, str(tmp_path / "found-1"), lambda spec: 10, 100.0), **given) == settings


def test_what_a_budget_does_not_count_is_not_added(tmp_path: Path) -> None:
    ledger = Ledger(sweep_of(tmp_path, BASE), str(tmp_path / "found-1"), lambda spec: 10, 100.0)
    with pytest.raises(SpecError, match=r"bounds no trials, but runs 3\.5: add to that"):
        more(ledger, runs=None, count=3, tokens=None, minutes=None)
    with pytest.raises(SpecError, match="say what to add"):
        more(ledger, runs=None, count=None, tokens=None, minutes=None)
