"""How many trials and repeats a budget pays for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.search.ledger import Ledger
from jobs.search.planned import plan_of
from jobs.search.rules.auto import BRACKETED, probed_rates
from jobs.search.rules.budget import BudgetPlan, budget_plan, most_repeats
from jobs.search.rules.checking import sweep_warnings
from jobs.search.rules.prior import with_prior
from jobs.search.rules.spec_text import format_sweep
from jobs.search.spending import kind_within
from jobs.spec.sweep import Budget
from jobs.training.mailbox import Answer
from tests.unit.jobs.search.rules.test_auto import RATE, WARMUP, base_of, scored_at, sweep_with

SIX = ("learning_rate", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm")
ONLY_RATE: dict[str, Any] = {RATE: {"min": 1e-5, "max": 1e-3, "log": True}}


@pytest.mark.parametrize(
    ("fields", "compared", "whole_runs"),
    [
        ({}, 6, 1),  # as before: the default of 3.2 runs
        ({"budget": {"runs": 9}}, BRACKETED, 6),
        ({"budget": {"runs": 40}}, BRACKETED, 16),
        ({"budget": {"trials": 20}}, BRACKETED, 12),
        ({"budget": {"minutes": 60}}, BRACKETED, 16),
        ({"budget": {"runs": 9}, "rungs": [0.25, 0.5]}, BRACKETED, 5),
        ({"budget": {"trials": 20}, "scheduler": "none"}, 20, 0),
        ({"budget": {"trials": 20}, "scheduler": "none", "space": ONLY_RATE}, BRACKETED, 0),
        ({"budget": {"trials": 20}, "scheduler": "none", "space": {**ONLY_RATE, WARMUP: [0.0, 0.1]}}, BRACKETED + 1, 0),
    ],
)
def test_what_more_rates_would_not_tell_apart_is_for_whole_runs(
    tmp_path: Path, fields: dict[str, Any], compared: int, whole_runs: int
) -> None:
    plan = budget_plan(sweep_with(tmp_path, **fields), 100, 1000)
    assert (plan.compared, plan.whole_runs) == (compared, whole_runs)


def test_seeds_get_two_whole_runs_where_the_budget_pays_for_the_usual_rates_too(tmp_path: Path) -> None:
    for runs, seeds, expected in ((3.2, 3, 1), (4.2, 3, 2), (4.2, 1, 1), (9, 3, 6)):
        sweep = sweep_with(tmp_path, budget={"runs": runs}, seeds=seeds)
        plan = budget_plan(sweep, 100, 1000)
        assert plan.whole_runs == expected and plan.compared >= 6
        assert most_repeats(sweep, plan) == min(expected, 2) * (seeds - 1)


def test_repeats_are_those_of_trials_that_are_trained_to_their_end(tmp_path: Path) -> None:
    halving = {"algorithm": "tpe", "scheduler": "halving", "seeds": 2}
    for fields, finalists in (
        ({**halving, "budget": {"trials": 7}}, 1),
        ({**halving, "budget": {"trials": 8}}, 2),
        ({**halving, "budget": {"trials": 12}, "rungs": [0.25, 0.5]}, 1),
        ({"algorithm": "random", "budget": {"runs": 0.5}, "seeds": 2}, 1),
        ({"algorithm": "random", "budget": {"runs": 1.5}, "seeds": 2}, 2),
        ({"algorithm": "random", "budget": {"minutes": 5}, "seeds": 2}, 2),
    ):
        sweep = sweep_with(tmp_path, **fields)
        assert most_repeats(sweep, budget_plan(sweep, 100, 1000)) == finalists


def extended(ledger: Ledger, runs: float) -> BudgetPlan:
    ledger.change(ledger.sweep.model_copy(update={"budget": Budget(runs=runs)}))
    return plan_of(ledger)


def test_a_larger_budget_pays_first_for_what_has_begun(tmp_path: Path) -> None:
    """Twelve rates were compared in a search of an earlier release, and a trial has continued after a whole run."""
    losses = {1e-4 * 1.1**number: 0.5 + 0.01 * abs(number - 6) for number in range(12)}
    ledger = scored_at(tmp_path, losses, budget={"runs": 5.6})
    for number in (2, 3):
        ledger.answered(ledger.trials[number], Answer(status="finished", step=100, metrics={"eval_loss": 0.4}))
    used = (12 * 35 + 2 * 75) / 100
    for runs in (5.7, 6.0, 6.9):
        plan = extended(ledger, runs)
        assert (plan.compared, plan.whole_runs) == (12, 2), f"{used} of {runs} runs are used"
    assert extended(ledger, 7.3).whole_runs == 3


def test_no_trial_continues_beyond_the_whole_runs_of_the_budget(tmp_path: Path) -> None:
    """More rates have moved the target to another paused trial."""
    ledger = scored_at(tmp_path, {1e-4: 0.6, 3e-4: 0.5, 1.8e-4: 0.51}, budget={"runs": 3.2})
    assert ledger.going_on == [3]
    whole = ledger.add({RATE: 3.5e-4, WARMUP: 0.06}, without_rungs=True)
    assert ledger.plan.whole_runs == 1 and ledger.going_on == []
    ledger.answered(whole, Answer(status="finished", step=100, metrics={"eval_loss": 0.4}))
    assert ledger.going_on == []
    assert extended(ledger, 6.0).whole_runs == 3 and ledger.going_on == [3]
    ledger.answered(whole, Answer(status="failed", step=100, reason="out of memory"))
    extended(ledger, 3.2)
    assert ledger.going_on == [3], "without any whole run, there would be no model"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "then the best with 3 seeds;"),
        ({"budget": {"runs": 5}}, "then the two best with 3 seeds each;"),
        ({"budget": {"minutes": 60}}, "then the best, at most two, with 3 seeds each;"),
        ({"algorithm": "random", "budget": {"trials": 5}}, "then the two best with 3 seeds each;"),
        ({"algorithm": "tpe", "scheduler": "halving", "budget": {"trials": 7}}, "then the best with 3 seeds;"),
    ],
)
def test_a_sweep_says_how_many_trials_are_repeated(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    assert said in format_sweep(sweep_with(tmp_path, seeds=3, **fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": {"runs": 9}}, None),
        ({"budget": {"runs": 40}}, "budget.runs is 40, but auto takes at most 18.8 runs: 8 rates and 16 whole runs, "),
        (
            {"budget": {"runs": 9}, "space": ONLY_RATE},
            "budget.runs is 9, but auto takes at most 7.8 runs: 8 rates and 5",
        ),
        ({"budget": {"trials": 30}}, "budget.trials is 30, but auto tries at most 8 rates and 16 whole runs, "),
        ({"budget": {"trials": 9}, "scheduler": "none"}, None),
        (
            {"budget": {"trials": 9}, "scheduler": "none", "space": ONLY_RATE},
            "budget.trials is 9, but auto tries at most 8",
        ),
        ({"budget": {"minutes": 9}}, None),
        ({"budget": {"minutes": 9}, "queue": {"max_runtime_s": 540}}, None),
        (
            {"budget": {"minutes": 9}, "queue": {"max_runtime_s": 300}},
            "queue.max_runtime_s (300) ends the sweep before budget.minutes (9) are used up, without an export",
        ),
    ],
)
def test_a_budget_that_cannot_be_used_up_is_a_warning(tmp_path: Path, fields: dict[str, Any], said: str | None) -> None:
    warnings = sweep_warnings(sweep_with(tmp_path, **fields))
    assert len(warnings) == (said is not None) and all(one.startswith(said or "") for one in warnings)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"space": {"decay_ratio": [0.1, 0.2]}},
            "space.decay_ratio has no effect with lr_scheduler_type: linear. It is",
        ),
        ({"space": {"decay_ratio": [0.1], "lr_scheduler_type": ["cosine", "warmup_stable_decay"]}}, None),
        (
            {"space": {"learning_rate": {"min": 1e-5, "max": 1e-3, "points": 7}}, "algorithm": "random"},
            "space.learning_rate.points has no effect with algorithm: random. It is for grid",
        ),
        (
            {"space": {name: {"min": 0.1, "max": 0.2} for name in SIX}, "algorithm": "grid"},
            "the grid has 15,625 points, but a sweep begins at most 10,000 trials: give lists, or points for the",
        ),
        ({"space": {name: {"min": 0.1, "max": 0.2} for name in SIX[:5]}, "algorithm": "grid"}, None),
    ],
)
def test_parts_of_a_space_without_effect_are_a_warning(
    tmp_path: Path, fields: dict[str, Any], said: str | None
) -> None:
    warnings = sweep_warnings(sweep_with(tmp_path, **fields))
    assert len(warnings) == (said is not None) and all(one.startswith(said or "") for one in warnings)


def test_in_fp16_the_greatest_rate_is_not_looked_for(tmp_path: Path) -> None:
    """The first steps are skipped, so that the loss after them is the one before."""
    fp16 = base_of(tmp_path, fp16=True)
    assert probed_rates(with_prior(sweep_with(tmp_path))[0])
    assert not probed_rates(with_prior(sweep_with(tmp_path, base=fp16))[0])
    either = with_prior(sweep_with(tmp_path, base=fp16, space={**ONLY_RATE, "fp16": [False, True]}))[0]
    assert not probed_rates(either) and probed_rates(
        either.model_copy(update={"prior": {**either.prior, "fp16": False}})
    )


def test_whole_runs_that_begin_at_once_differ(tmp_path: Path) -> None:
    """With several gangs, they begin before any has finished."""
    ledger = scored_at(tmp_path, {1e-4: 0.6, 3e-4: 0.5, 9e-4: 0.55}, budget={"runs": 9}, space=ONLY_RATE)
    plan = BudgetPlan(compared=3, whole_runs=5, extrapolates=True)
    for place in range(5):
        assert kind_within(ledger, plan, {}) == "whole" and ledger.has_further_rate
        ledger.add({RATE: ledger.target * 1.5 ** (0, -1, 1, -2, 2)[place]}, without_rungs=True)
    assert kind_within(ledger, plan, {}) == "wait" and not ledger.has_further_rate
