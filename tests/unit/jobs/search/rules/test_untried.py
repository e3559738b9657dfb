"""Where lists leave few values, none is tried twice."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.search.changes import larger
from jobs.search.ledger import Ledger
from jobs.search.planned import plan_of
from jobs.search.rules.budget import budget_plan, most_gangs
from jobs.search.rules.checking import sweep_warnings
from jobs.search.rules.prior import with_prior
from jobs.search.rules.untried import listed, untried
from jobs.search.spending import kind_within
from jobs.training.mailbox import Answer
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

RATES, WARMUPS = [1e-5, 1e-4, 1e-3], [0.0, 0.1]
BOTH = {"learning_rate": RATES, "warmup_ratio": WARMUPS}


def ledger_of(folder: Path, **fields: Any) -> Ledger:
    return Ledger(with_prior(sweep_of(folder, BASE, **fields))[0], str(folder / "found"), lambda spec: 100, 100.0)


def finish(ledger: Ledger, values: dict[str, Any], loss: float = 0.5, without_rungs: bool = False) -> None:
    trial = ledger.add(values, without_rungs=without_rungs)
    ledger.answered(trial, Answer(status="finished", step=100, tokens=100, metrics={"eval_loss": loss}))


@pytest.mark.parametrize("algorithm", ["random", "tpe", "gp"])
def test_as_many_trials_begin_as_lists_have_combinations(tmp_path: Path, algorithm: str) -> None:
    ledger = ledger_of(tmp_path, space=BOTH, algorithm=algorithm, budget={"trials": 12})
    assert plan_of(ledger).compared == most_gangs(ledger.sweep) == 6
    for number, values in enumerate(untried(ledger.sweep, ()) or (), 1):
        assert kind_within(ledger, plan_of(ledger), {}) == "compared"
        finish(ledger, values)
        assert len(untried(ledger.sweep, ledger.searched) or ()) == 6 - number
    assert kind_within(ledger, plan_of(ledger), {}) == "done"
    with pytest.raises(SpecError, match="every combination of the lists has been tried"):
        larger(ledger, {"trials": 3})
    (said,) = sweep_warnings(ledger.sweep)
    assert said == "budget.trials is 12, but the lists of the space have 6 combinations, each of which is tried once"


def test_auto_tries_each_listed_rate_at_the_prior_and_then_the_other_values_at_the_best_rate(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, space=BOTH, budget={"runs": 40}, prior={"learning_rate": 1e-4, "warmup_ratio": 0.1})
    assert untried(ledger.sweep, ()) == [{"learning_rate": rate, "warmup_ratio": 0.1} for rate in RATES]
    assert plan_of(ledger).compared == 3 and plan_of(ledger).whole_runs == 1, "at the best rate, one other warmup"
    for rate in RATES:
        finish(ledger, {"learning_rate": rate, "warmup_ratio": 0.1}, loss=abs(rate - 1e-4))
    assert kind_within(ledger, plan_of(ledger), {}) == "whole"
    best = {"learning_rate": 1e-4, "warmup_ratio": 0.1}
    assert untried(ledger.sweep, ledger.searched, best) == [{"learning_rate": 1e-4, "warmup_ratio": 0.0}]
    finish(ledger, {"learning_rate": 1e-4, "warmup_ratio": 0.0}, loss=1.0, without_rungs=True)
    assert kind_within(ledger, plan_of(ledger), {}) == "done", "the best trial was a whole run itself"


def test_what_listed_rates_leave_of_a_budget_is_for_whole_runs(tmp_path: Path) -> None:
    space = {"learning_rate": RATES, "weight_decay": {"min": 0.0, "max": 0.1}}
    plan = plan_of(ledger_of(tmp_path, space=space, budget={"runs": 12}))
    assert plan.compared == 3 and 3 * 0.25 + plan.whole_runs <= 12 < 3 + plan.whole_runs + 2
    ledger = ledger_of(tmp_path, space=space, budget={"trials": 12})
    assert plan_of(ledger).compared + plan_of(ledger).whole_runs == 12
    one_rate = ledger_of(tmp_path, space={**space, "learning_rate": [1e-4]}, budget={"minutes": 60})
    assert most_gangs(one_rate.sweep) == 8, "for the whole runs"


def test_with_several_rungs_a_whole_run_at_the_extrapolated_rate_is_left(tmp_path: Path) -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}, "weight_decay": [0, 0.1]}
    ledger = ledger_of(tmp_path, space=space, rungs=[0.25, 0.5], budget={"trials": 9}, prior={"learning_rate": 1e-4})
    plan = plan_of(ledger)
    assert plan.whole_runs == 2, "at the extrapolated rate, and at the best one with the other decay"
    for number in range(int(plan.compared)):
        assert kind_within(ledger, plan, {}) == "compared"
        finish(ledger, {"learning_rate": 1e-4 * 1.1**number, "weight_decay": 0.0}, loss=0.5 + number)
    assert kind_within(ledger, plan, {}) == "whole"
    finish(ledger, {"learning_rate": 6e-5, "weight_decay": 0.0}, loss=1.0, without_rungs=True)
    assert kind_within(ledger, plan, {}) == "whole", "the best rate with the other decay"
    finish(ledger, {"learning_rate": 1e-4, "weight_decay": 0.1}, loss=1.0, without_rungs=True)
    assert kind_within(ledger, plan, {}) == "done"
    assert untried(ledger.sweep, ledger.searched, {"learning_rate": 1e-4}) == [], "0 and 0.0 are the same value"


def test_values_outside_of_shorter_lists_leave_all_of_these_to_try(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, space=BOTH, algorithm="random", budget={"trials": 12})
    finish(ledger, {"learning_rate": 1e-3, "warmup_ratio": 0.0})
    shorter = ledger.sweep.model_copy(update={"space": {**ledger.sweep.space, "learning_rate": (1e-5, 1e-4)}})
    assert len(untried(shorter, ledger.searched) or ()) == 4
    assert plan_of(ledger, shorter).compared == 5


def test_a_range_or_long_lists_set_no_limit(tmp_path: Path) -> None:
    search: dict[str, Any] = {"algorithm": "random", "budget": {"trials": 9_000}}
    rates, decays = [number / 1e6 for number in range(1, 102)], [number / 1e3 for number in range(100)]
    for space in (
        {**BOTH, "weight_decay": {"min": 0.0, "max": 0.1}},
        {"learning_rate": rates, "weight_decay": decays},
    ):
        sweep = sweep_of(tmp_path, BASE, space=space, **search)
        assert untried(sweep, ()) is None and budget_plan(sweep, 100, 100.0).compared == 9_000
        assert not sweep_warnings(sweep)


def test_after_a_whole_run_has_diverged_the_next_one_has_a_clearly_lower_rate(tmp_path: Path) -> None:
    """Each trial has seemed good at the rung. The same values would diverge again."""
    sweep = with_prior(
        sweep_of(
            tmp_path,
            BASE,
            space={"learning_rate": {"min": 1e-5, "max": 1e-2, "log": True}},
            budget={"runs": 9},
            prior={"learning_rate": 1e-4},
        )
    )[0]
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 100, 100.0)
    for rate, loss in ((1e-4, 0.5), (3e-4, 0.4), (9e-4, 0.6)):
        answer = Answer(status="paused", step=25, metrics={"eval_loss": loss})
        ledger.answered(ledger.add({"learning_rate": rate}), answer)
    first = ledger.target
    diverged = Answer(status="failed", reason="diverged", diverged=True)
    ledger.answered(ledger.add({"learning_rate": first}, without_rungs=True), diverged)
    assert ledger.target == pytest.approx(first / 1.75) and ledger.has_further_rate
    ledger.answered(ledger.trials[1], diverged)
    assert ledger.target == pytest.approx(1e-4 / 1.75), "one that has gone on after the rung counts too"


def test_no_whole_run_is_left_where_a_narrow_range_has_no_other_rate(tmp_path: Path) -> None:
    narrow = {"learning_rate": {"min": 1e-4, "max": 1.1e-4, "log": True}}
    sweep = with_prior(sweep_of(tmp_path, BASE, space=narrow, budget={"runs": 15}, prior={"learning_rate": 1e-4}))[0]
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 100, 100.0)
    plan = replace(plan_of(ledger), compared=1)
    assert plan.whole_runs > 1 and plan.extrapolates
    trial = ledger.add({"learning_rate": 1e-4})
    ledger.answered(trial, Answer(status="paused", step=25, metrics={"eval_loss": 0.5}))
    ledger.answered(trial, Answer(status="finished", step=100, metrics={"eval_loss": 0.4}))
    assert not ledger.has_further_rate and kind_within(ledger, plan, {}) == "done"


SHORT: dict[str, Any] = {
    "learning_rate": {"min": 1e-5, "max": 1e-3, "log": True},
    "warmup_ratio": [0.0, 0.01, 0.02, 0.1],
}


@pytest.mark.parametrize(("steps", "left"), [(24, [0.0, 0.01, 0.1]), (100, [0.0, 0.01, 0.02, 0.1])])
def test_warmups_of_as_many_steps_are_tried_once(tmp_path: Path, steps: int, left: list[float]) -> None:
    sweep = sweep_of(tmp_path, BASE, space={"warmup_ratio": [0.0, 0.01, 0.02, 0.1]}, algorithm="random")
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: steps, 100.0)
    assert untried(sweep, (), total_steps=steps) == [{"warmup_ratio": ratio} for ratio in left]
    assert plan_of(ledger).compared == len(left)
    finish(ledger, {"warmup_ratio": 0.02})
    assert len(untried(sweep, ledger.searched, total_steps=steps) or ()) == len(left) - 1


def test_a_range_of_a_short_run_has_a_warmup_for_each_step(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE, space={"warmup_ratio": {"min": 0.0, "max": 0.2}}, algorithm="random")
    for steps in (7, 24, 49):
        ratios = [values["warmup_ratio"] for values in untried(sweep, (), total_steps=steps) or ()]
        assert [math.ceil(ratio * steps) for ratio in ratios] == list(range(math.ceil(0.2 * steps) + 1))
        assert all(0.0 <= ratio <= 0.2 for ratio in ratios)
    assert untried(sweep, (), total_steps=1_000) is None


def test_where_batches_differ_the_steps_of_a_warmup_are_not_known(tmp_path: Path) -> None:
    space = {"warmup_ratio": [0.0, 0.01, 0.02, 0.1], "global_batch_size": [8, 16]}
    sweep = sweep_of(tmp_path, BASE, space=space, algorithm="random")
    assert len(untried(sweep, (), total_steps=24) or ()) == 8


@pytest.mark.parametrize(
    ("name", "values", "steps"),
    [
        ("warmup_ratio", [0.0, 0.1, 1.0, 0.01], 100),
        ("decay_ratio", [0.05, 0.5, 1.0], 20),
        ("warmup_steps", [0.1, 1.0, 10.0], 100),  # 0.1 is a share: the same as 10 steps
    ],
)
def test_a_share_of_one_is_the_whole_run_and_not_one_step(
    tmp_path: Path, name: str, values: list[float], steps: int
) -> None:
    sweep = sweep_of(tmp_path, BASE, space={name: values}, algorithm="grid")
    left = values[:2] if name == "warmup_steps" else values
    assert listed(sweep, steps)[name if name in sweep.dimensions else f"train.{name}"] == tuple(left)
