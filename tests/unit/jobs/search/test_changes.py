"""A sweep that is changed on the way: what may be asked for, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, SpecError
from jobs.run.paths import JobPaths
from jobs.search.changes import Change, Changes, changed, larger, narrower
from jobs.search.ledger import Ledger
from jobs.search.rules.checking import check_same_search
from jobs.spec.load import dump_spec, load_sweep
from jobs.spec.space import Range
from jobs.training.mailbox import Answer
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

RATES = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}


def begun(folder: Path, **fields: Any) -> JobPaths:
    paths = JobPaths(str(folder / "found-1"))
    Path(paths.root).mkdir()
    Path(paths.spec).write_bytes(dump_spec(sweep_of(folder, BASE, **{"algorithm": "random", "space": RATES, **fields})))
    return paths


def test_changes_wait_in_their_order_and_each_is_seen_with_those_before_it(tmp_path: Path) -> None:
    paths = begun(tmp_path, budget={"trials": 4})
    changes, sweep = Changes(paths), load_sweep(paths.spec)
    assert sweep is not None
    changes.ask(Change(more={"trials": 2}))
    changes.ask(Change(more={"trials": 2}, space={"learning_rate": {"max": 5e-4}}))
    with pytest.raises(SpecError, match="must be less than max"):
        changes.ask(Change(space={"learning_rate": {"min": 7e-4}}))
    for name, change in changes.waiting():
        sweep = changed(sweep, change)
        changes.done_with(name)
    assert sweep.budget.trials == 8
    assert sweep.dimensions["learning_rate"] == Range(min=1e-5, max=5e-4, log=True)
    assert not list(changes.waiting())


@pytest.mark.parametrize(
    ("settings", "space"),
    [
        (["learning_rate.max=5e-4"], {"learning_rate": {"max": 5e-4}}),
        (["space.learning_rate.min=2e-5", "learning_rate.max=5e-4"], {"learning_rate": {"min": 2e-5, "max": 5e-4}}),
        (["train.learning_rate.max=5e-4"], {"learning_rate": {"max": 5e-4}}),
        (["learning_rate={min: 1e-4, max: 2e-4}"], {"learning_rate": {"min": 1e-4, "max": 2e-4}}),
        (["lr_scheduler_type=[linear]"], {"train.lr_scheduler_type": ["linear"]}),
    ],
)
def test_what_a_setting_means(tmp_path: Path, settings: list[str], space: dict[str, Any]) -> None:
    sweep = sweep_of(tmp_path, BASE, space={**RATES, "train.lr_scheduler_type": ["linear", "cosine"]})
    assert narrower(sweep, settings) == Change(space=space)
    changed(sweep, Change(space=space))


def test_a_weight_of_a_source_is_narrowed_by_its_dotted_name(tmp_path: Path) -> None:
    base = {**BASE, "data": {**BASE["data"], "train": [{"path": "a", "weight": 1}]}, "train": {"max_steps": 9}}
    sweep = sweep_of(tmp_path, base, space={"data.train.0.weight": {"min": 1, "max": 4}})
    now = changed(sweep, narrower(sweep, ["data.train.0.weight.max=2"]))
    assert now.dimensions == {"data.train.0.weight": Range(min=1, max=2)}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning_rate.max", "must be KEY=VALUE"),
        ("learning_rat.max=1e-4", "the space has learning_rate; of a range, min and max"),
        ("learning_rate.mxa=1e-4", "the space has learning_rate; of a range, min and max"),
        ("learning_rate=[1e-4, 2e-4]", "a range cannot become a list"),
        ("learning_rate.max=1e-6", "must be less than max"),
        ("learning_rate.max=high", "space.learning_rate.max: must be a number"),
        ("learning_rate.max=.nan", "space.learning_rate: must be a finite number, but is nan"),
    ],
)
def test_a_wrong_setting_is_told(tmp_path: Path, setting: str, said: str) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="random", space=RATES)
    with pytest.raises(SpecError) as caught:
        changed(sweep, narrower(sweep, [setting]))
    assert said in str(caught.value)


def test_a_part_of_what_an_earlier_setting_made_a_list_is_refused(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="random", space=RATES)
    with pytest.raises(SpecError, match=r"--set learning_rate\.max=1e-3: an earlier --set gives learning_rate as \["):
        narrower(sweep, ["learning_rate=[1e-4, 2e-4]", "learning_rate.max=1e-3"])


def test_the_points_of_a_grid_stay(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="grid", space={"learning_rate": [1e-4, 1e-3]})
    with pytest.raises(SpecError, match="the trials of a grid are numbered by it"):
        changed(sweep, Change(space={"learning_rate": [1e-4]}))


def test_a_grid_that_is_tried_is_not_told_to_get_more_values(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="grid", space={"learning_rate": [1e-4]})
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 10, 100.0)
    ledger.answered(ledger.add({"learning_rate": 1e-4}), Answer(status="failed", reason="nan"))
    with pytest.raises(SpecError, match="would begin no trial: start a new sweep"):
        larger(ledger, {"trials": 3})


def test_the_points_of_a_grid_keep_their_order(tmp_path: Path) -> None:
    """The order of the fields in the spec numbers them."""
    space: dict[str, Any] = {"learning_rate": [1e-4, 1e-3], "warmup_ratio": [0.0, 0.1]}
    before = sweep_of(tmp_path, BASE, algorithm="grid", space=space)
    check_same_search(before, before)
    with pytest.raises(SpecError, match="numbered by it, in its order"):
        check_same_search(before, sweep_of(tmp_path, BASE, algorithm="grid", space=dict(reversed(space.items()))))


def test_one_run_is_not_changed(tmp_path: Path) -> None:
    paths = begun(tmp_path)
    sweep = load_sweep(paths.spec)
    assert sweep is not None
    Path(paths.spec).write_bytes(dump_spec(sweep.base))
    with pytest.raises(InputError, match="is not a sweep"):
        Changes(paths).ask(Change(more={"trials": 1}))


@pytest.mark.parametrize(
    ("budget", "added", "after"),
    [
        ({"trials": 4}, {"trials": 2}, {"trials": 6}),
        ({"runs": 3.5}, {"runs": 4.0}, {"runs": 7.5}),
        ({"runs": 3.5}, {"tokens": 150}, {"runs": 5.0}),
        ({"tokens": 400}, {"runs": 2.0}, {"tokens": 600}),
        ({"tokens": 15_000_000_000}, {"tokens": 7}, {"tokens": 15_000_000_007}),
        ({"runs": 2, "tokens": 400}, {"tokens": 7}, {"runs": 2.0, "tokens": 407}),
        ({"minutes": 10, "trials": 3}, {"minutes": 5.0, "trials": 1}, {"minutes": 15.0, "trials": 4}),
        ({"gpu_hours": 2}, {"gpu_hours": 0.5}, {"gpu_hours": 2.5}),
    ],
)
def test_what_is_added_to_a_budget(
    tmp_path: Path, budget: dict[str, Any], added: dict[str, Any], after: dict[str, Any]
) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="random", space=RATES, budget=budget)
    ledger = Ledger(sweep, str(tmp_path / "found-1"), lambda spec: 10, 100.0)
    given = dict.fromkeys(("runs", "trials", "tokens", "minutes", "gpu_hours")) | added
    assert changed(sweep, larger(ledger, given)).budget.model_dump(exclude_none=True) == after


def test_what_a_budget_does_not_count_is_not_added(tmp_path: Path) -> None:
    ledger = Ledger(sweep_of(tmp_path, BASE), str(tmp_path / "found-1"), lambda spec: 10, 100.0)
    with pytest.raises(SpecError, match=r"has no trials: it has runs \(3\.2\). Add to that"):
        larger(ledger, {"trials": 3})
    with pytest.raises(SpecError, match="say what to add"):
        larger(ledger, {"runs": None})
    for nothing in (0.0, -1.0):
        with pytest.raises(SpecError, match="--gpu-hours must be more than 0"):
            larger(ledger, {"gpu_hours": nothing})


def test_a_change_is_told_in_words() -> None:
    change = Change(more={"trials": 2, "gpu_hours": 0.5}, space={"learning_rate": {"max": 5e-4}, "seed": [1, 2]})
    assert str(change) == "budget.trials +2, budget.gpu_hours +0.5, learning_rate max 0.0005, seed [1, 2]"
