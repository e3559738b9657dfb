"""What `auto` does with a space, a prior and a budget, before any model proposes values."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.run.record import open_run
from jobs.search.ledger import Ledger
from jobs.search.rules.auto import (
    BRACKETED,
    compared_point,
    extrapolates,
    first_whole_run,
    fixed_values,
    further_rate,
    greatest_rate,
    probed_rates,
    whole_run_rate,
)
from jobs.search.rules.budget import (
    BudgetPlan,
    budget_plan,
    budget_problem,
    compared_steps,
    most_gangs,
    next_kind,
)
from jobs.search.rules.checking import check_sweep_resumable, with_stored_values
from jobs.search.rules.prior import rate_by_size, with_prior
from jobs.search.rules.rungs import ETA, going_on, halving_steps, next_stop
from jobs.search.rules.spec_text import format_sweep
from jobs.search.trials import Trials
from jobs.spec.load import dump_spec, load_sweep
from jobs.spec.space import Range
from jobs.spec.sweep import SweepSpec
from jobs.training.mailbox import Answer
from tests.support.trials import trial_of
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

STOPS, COOLDOWN = [25, 50, 100], 10
RATE, WARMUP = "learning_rate", "warmup_ratio"


def base_of(folder: Path, **train: Any) -> dict[str, Any]:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text(json.dumps({"hidden_size": 500}))
    return {**BASE, "train": train}


def sweep_with(folder: Path, **fields: Any) -> SweepSpec:
    return sweep_of(folder, **{"base": base_of(folder), **fields})


def test_the_rate_that_it_begins_with_follows_from_the_models_width(tmp_path: Path) -> None:
    sweep, source = with_prior(sweep_with(tmp_path))
    rate = sweep.prior[RATE]
    assert rate == rate_by_size(500) == pytest.approx(5e-5 * 4**0.43, rel=0.02) and source == "the model's width of 500"
    assert sweep.space[RATE] == Range(min=rate_by_size(500) / 10, max=rate_by_size(500) * 10, log=True)
    assert sweep.prior[WARMUP] == 0.06 and sweep.space[WARMUP] == Range(min=0.0, max=0.2)


def test_or_from_the_base_where_it_gives_one_or_the_model_is_not_here(tmp_path: Path) -> None:
    given, source = with_prior(sweep_with(tmp_path, base=base_of(tmp_path, learning_rate=3e-4)))
    assert given.prior[RATE] == 3e-4 and source == "the base"
    (tmp_path / "model/config.json").unlink()
    default, source = with_prior(sweep_of(tmp_path, {**BASE, "train": {}}))
    assert default.prior[RATE] == 2e-5 and source == "the base"


def test_what_was_begun_stays_what_it_was(tmp_path: Path) -> None:
    """The spec in the sweep's directory has the prior that was found, whatever is found later."""
    begun, _ = with_prior(sweep_with(tmp_path))
    (tmp_path / "kept.json").write_bytes(dump_spec(begun))
    again = load_sweep(str(tmp_path / "kept.json"))
    assert again is not None and with_prior(again) == (begun, None)


def test_the_prior_is_drawn_into_a_given_space(tmp_path: Path) -> None:
    space = {"learning_rate": {"min": 1e-3, "max": 1e-2, "log": True}, "weight_decay": [0.01, 0.1]}
    sweep, _ = with_prior(sweep_with(tmp_path, space=space))
    assert sweep.prior == {"learning_rate": 1e-3, "weight_decay": 0.01}
    assert with_prior(sweep_with(tmp_path, space=space))[1] == "the model's width of 500, moved into the space"
    few, _ = with_prior(sweep_with(tmp_path, space={"learning_rate": [1e-6, 1e-4, 1e-3]}))
    assert few.prior == {"learning_rate": 1e-4}, "the nearest choice"


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ({"learning_rate": 0.5}, "prior.learning_rate: 0.5 is outside of space.learning_rate"),
        ({"learning_rate": "fast"}, "prior.learning_rate: must be a number above 0, at most 1, but is fast"),
        ({"learning_rate": [1e-4]}, "prior.learning_rate: must be a number above 0, at most 1, but is [0.0001]"),
        ({"train.learning_rate": 0.5}, "prior.train.learning_rate: 0.5 is outside of space.learning_rate"),
        ({"weight_decay": 0.1}, "prior.weight_decay: the space has no such field"),
        ({"lr": 1e-4}, "prior.lr: unknown key; use train.learning_rate"),
        ({"model.path": "x"}, "prior.model.path: the model and the rows are prepared once for all trials"),
    ],
)
def test_a_prior_outside_of_the_space_is_refused(tmp_path: Path, prior: dict[str, Any], said: str) -> None:
    sweep = sweep_with(tmp_path, prior=prior, space={"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}})
    with pytest.raises(SpecError) as caught:
        with_prior(sweep)
    assert said in str(caught.value)


def test_compared_trials_have_the_priors_values_but_for_the_rate(tmp_path: Path) -> None:
    sweep, _ = with_prior(sweep_with(tmp_path, prior={"learning_rate": 1e-4}))
    assert compared_point(sweep, {}) == {RATE: 1e-4, WARMUP: 0.06}
    assert compared_point(sweep, {1e-4: 0.5}) == {RATE: pytest.approx(3e-4), WARMUP: 0.06}
    narrow = {"learning_rate": {"min": 5e-5, "max": 1e-4, "log": True}}
    at_an_end, _ = with_prior(sweep_with(tmp_path, prior={"learning_rate": 1e-4}, space=narrow))
    assert compared_point(at_an_end, {1e-4: 0.5}) == {RATE: pytest.approx(5e-5)}


def test_rates_outside_of_a_range_that_was_narrowed_are_left_out(tmp_path: Path) -> None:
    """Else the best one, outside, would lead to its end again and again."""
    narrow = {"learning_rate": {"min": 1e-5, "max": 5e-4, "log": True}}
    sweep, _ = with_prior(sweep_with(tmp_path, prior={"learning_rate": 1e-4}, space=narrow))
    scores: dict[float, float | None] = {1e-3: 0.3, 1e-4: 0.6}
    for _ in range(4):
        rate = compared_point(sweep, scores)["learning_rate"]
        assert rate not in scores and 1e-5 <= rate <= 5e-4
        scores[rate] = 0.5
    assert compared_point(sweep, {1e-3: 0.3}) == {"learning_rate": 1e-4}


def test_the_rate_is_searched_first_and_the_rest_at_the_best_rate(tmp_path: Path) -> None:
    sweep, _ = with_prior(sweep_with(tmp_path))
    assert fixed_values(sweep) == {WARMUP: 0.06}
    assert fixed_values(sweep, {RATE: 7e-4, WARMUP: 0.06}) == {RATE: 7e-4}


def test_a_whole_run_has_the_rate_that_the_best_one_at_the_rung_leads_to(tmp_path: Path) -> None:
    sweep, _ = with_prior(sweep_with(tmp_path))
    assert extrapolates(sweep) and whole_run_rate(sweep, 1e-3) == pytest.approx(1e-3 * 0.25**0.32)
    at_the_end, _ = with_prior(sweep_with(tmp_path, space={"learning_rate": {"min": 9e-4, "max": 2e-3, "log": True}}))
    assert whole_run_rate(at_the_end, 1e-3) == 9e-4
    assert further_rate(sweep, 3e-4, [3e-4]) == pytest.approx(2e-4)
    assert further_rate(sweep, 3e-4, [3e-4, 2.1e-4]) == pytest.approx(4.5e-4)
    rungs, _ = with_prior(sweep_with(tmp_path, rungs=[0.25, 0.5]))
    assert not extrapolates(rungs)
    whole = {RATE: pytest.approx(1e-3 * 0.25**0.32), WARMUP: 0.06}
    assert first_whole_run(rungs, {RATE: 1e-3, WARMUP: 0.06}) == whole


def scored_at(folder: Path, losses: dict[float, float], **fields: Any) -> Ledger:
    """A ledger of `auto` whose compared trials have these losses at the rung, by their rates."""
    sweep, _ = with_prior(sweep_with(folder, prior={"learning_rate": 1e-4}, **fields))
    ledger = Ledger(sweep, str(folder / "found"), lambda spec: 100, 1000.0)
    for rate, loss in losses.items():
        trial = ledger.add({RATE: rate, WARMUP: 0.06})
        ledger.answered(trial, Answer(status="paused", step=25, metrics={"eval_loss": loss}))
    return ledger


def test_the_trial_that_goes_on_is_the_one_near_the_target(tmp_path: Path) -> None:
    """The best rate at the rung, 3e-4, leads to 1.9e-4 for a whole run."""
    ledger = scored_at(tmp_path, {1e-4: 0.6, 3e-4: 0.5, 1.8e-4: 0.51})
    assert ledger.target == pytest.approx(3e-4 * 0.25**0.32) and ledger.going_on == [3]
    running = ledger.add({RATE: 5e-4, WARMUP: 0.06})
    assert ledger.going_on == []  # it may be better
    ledger.answered(running, Answer(status="paused", step=25, metrics={"eval_loss": 0.51}))
    assert ledger.going_on == [3]
    ledger.answered(ledger.trials[3], Answer(status="finished", step=100, metrics={"eval_loss": 0.4}))
    assert ledger.going_on == [] and ledger.best is ledger.trials[3]


def test_above_a_flat_loss_a_rate_that_diverged_makes_the_target_a_low_one(tmp_path: Path) -> None:
    ledger = scored_at(tmp_path, {1e-4: 0.503, 3e-4: 0.5})
    assert ledger.target == pytest.approx(3e-4 * 0.25**0.32)
    ledger.answered(ledger.add({RATE: 5e-4, WARMUP: 0.06}), Answer(status="failed", reason="nan", diverged=True))
    assert ledger.target == pytest.approx(1e-4 * 0.25**0.32)


def test_a_trial_that_was_interrupted_exactly_at_its_rung_is_scored_there(tmp_path: Path) -> None:
    ledger = scored_at(tmp_path, {1e-4: 0.6})
    trial = ledger.add({RATE: 3e-4, WARMUP: 0.06})
    assert next_stop(ledger.sweep, trial) == 25
    ledger.answered(trial, Answer(status="stopped", step=25))
    assert next_stop(ledger.sweep, trial) == 25
    ledger.answered(trial, Answer(status="paused", step=25, metrics={"eval_loss": 0.5}))
    assert next_stop(ledger.sweep, trial) == 100


def test_without_a_trial_near_the_target_a_whole_run_begins_there(tmp_path: Path) -> None:
    ledger = scored_at(tmp_path, {1e-4: 0.6, 3e-4: 0.5, 9e-4: 0.55})
    assert ledger.going_on == []
    plan = BudgetPlan(compared=3, whole_runs=1, extrapolates=True)
    assert next_kind(ledger.searched, plan, 0.9, False) == "whole"
    ledger.add({RATE: ledger.target, WARMUP: 0.06}, without_rungs=True)
    assert next_kind(ledger.searched, plan, 0.9, False) == "wait"


def test_a_trial_that_went_on_is_one_of_the_whole_runs(tmp_path: Path) -> None:
    ledger = scored_at(tmp_path, {1e-4: 0.6, 3e-4: 0.5, 1.9e-4: 0.55})
    plan = BudgetPlan(compared=3, whole_runs=1, extrapolates=True)
    ledger.answered(ledger.trials[3], Answer(status="finished", step=100, metrics={"eval_loss": 0.4}))
    assert next_kind(ledger.searched, plan, 0.9, False) == "done"
    ledger.answered(ledger.add({RATE: 9e-5, WARMUP: 0.06}), Answer(status="failed", reason="diverged"))
    assert next_kind(ledger.searched, plan, 2.0, False) == "done"


def test_one_whole_run_is_trained_even_when_time_is_up(tmp_path: Path) -> None:
    ledger = scored_at(tmp_path, {1e-4: 0.6, 3e-4: 0.5}, budget={"minutes": 5})
    plan = BudgetPlan(whole_runs=16, first_share=0.6, extrapolates=True)
    assert next_kind(ledger.searched, plan, 1.5, False) == "whole"


def test_rates_above_the_prior_are_probed_and_those_above_the_bound_are_never_proposed(tmp_path: Path) -> None:
    sweep, _ = with_prior(sweep_with(tmp_path, prior={"learning_rate": 1e-4}))
    rates = probed_rates(sweep)
    assert len(rates) == 7 and rates[0] > 1e-4 and rates[-1] == pytest.approx(1e-3)
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 100, 1000.0)
    ledger.set_bound(rates[2], 77)
    for again in (ledger, Trials(sweep, str(tmp_path / "found"))):
        space = again.sweep.dimensions[RATE]
        assert isinstance(space, Range) and (space.min, space.max) == (1e-5, rates[2])
        assert again.is_bounded and again.tokens == 77
        assert compared_point(again.sweep, {1e-4: 0.5})[RATE] == pytest.approx(rates[2])
    assert probed_rates(sweep_with(tmp_path, algorithm="random")) == ()


def test_a_prior_at_the_upper_end_of_the_range_leaves_nothing_to_probe(tmp_path: Path) -> None:
    low = {"learning_rate": {"min": 1e-6, "max": 2e-5, "log": True}}
    sweep, _ = with_prior(sweep_with(tmp_path, space=low, base=base_of(tmp_path, learning_rate=1e-3)))
    assert sweep.prior["learning_rate"] == 2e-5 and probed_rates(sweep) == ()
    assert compared_point(sweep, {2e-5: 0.5})["learning_rate"] == pytest.approx(2e-5 / 3)


def test_what_was_best_is_drawn_into_a_space_that_was_narrowed_since(tmp_path: Path) -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 5e-4, "log": True}, "lr_scheduler_type": ["cosine"]}
    sweep, _ = with_prior(sweep_with(tmp_path, space=space, prior={"learning_rate": 1e-4}))
    best = {"learning_rate": 8e-4, "lr_scheduler_type": "linear"}
    assert fixed_values(sweep, best) == {"learning_rate": 5e-4}
    assert whole_run_rate(sweep, 8e-4) == 5e-4


@pytest.mark.parametrize(
    ("space", "whole_runs"),
    [
        ({"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}, 5),
        ({"learning_rate": [1e-4, 1e-3]}, 0),
        ({"warmup_ratio": {"min": 0, "max": 0.2}}, 0),
        ({"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}, "weight_decay": [0.0, 0.1]}, 6),
    ],
)
def test_no_whole_run_is_the_copy_of_another(tmp_path: Path, space: dict[str, Any], whole_runs: int) -> None:
    sweep = sweep_with(tmp_path, space=space, budget={"runs": 10})
    assert budget_plan(sweep, 100, 1000).whole_runs == whole_runs


@pytest.mark.parametrize(
    ("fields", "gangs"),
    [
        ({}, 6),  # of the default budget
        ({"num_gangs": 2}, 2),
        ({"budget": {"runs": 100}}, 8),
        ({"algorithm": "tpe", "budget": {"runs": 2.5}}, 3),
        ({"algorithm": "tpe", "budget": {"tokens": 10**9}}, 8),
        ({"algorithm": "grid", "space": {"learning_rate": [1e-4, 1e-3]}}, 2),
        ({"algorithm": "random", "budget": {"trials": 1}}, 1),
    ],
)
def test_no_more_gangs_are_asked_for_than_have_work(tmp_path: Path, fields: dict[str, Any], gangs: int) -> None:
    assert most_gangs(sweep_with(tmp_path, **fields)) == gangs


def test_a_grid_is_no_larger_than_its_points_also_with_halving(tmp_path: Path) -> None:
    space = {"learning_rate": [1e-5, 1e-4, 1e-3]}
    grid = sweep_with(tmp_path, algorithm="grid", scheduler="halving", space=space)
    assert budget_plan(grid, 100, 1000).compared == 3 and "at most 3 trials" in format_sweep(grid)
    one = sweep_with(tmp_path, algorithm="grid", space={"learning_rate": [1e-5]})
    assert "at most 1 trial;" in format_sweep(one)


@pytest.mark.parametrize("prior", [{"learning_rate": 1e-4}, {"train.learning_rate": 1e-4}, {}])
def test_a_sweep_of_the_queue_goes_on_with_the_spec_that_was_submitted(tmp_path: Path, prior: dict[str, Any]) -> None:
    """It has the part of the prior that somebody has given; what is in the sweep's directory has all of it."""
    submitted = sweep_with(tmp_path, prior=prior)
    paths = open_run(with_prior(submitted)[0], str(tmp_path / "found"))
    again = with_stored_values(submitted, paths)
    check_sweep_resumable(paths, again, alone=True)
    assert again.prior == with_prior(submitted)[0].prior
    assert with_stored_values(submitted, paths, by_hand=False) == load_sweep(
        paths.spec
    )  # with what was changed on the way
    other = with_stored_values(sweep_with(tmp_path, prior={"learning_rate": 2e-4}), paths)
    with pytest.raises(SpecError, match="prior: "):
        check_sweep_resumable(paths, other, alone=True)


@pytest.mark.parametrize(
    ("losses", "greatest"),
    [
        ((0.7, 0.69, 0.68, 0.85, 0.9), 3e-4),
        ((0.696, 0.704, 0.713, 0.732, 0.747), None),  # as measured, where the best rate was 2e-4
        ((0.7, 0.9, 0.68, 0.85, 0.9), 3e-4),
        ((0.7, 0.69, 0.68, math.nan, math.inf), 3e-4),
        ((0.7, math.nan, math.nan, math.nan, math.nan), 1e-4),
    ],
)
def test_the_rate_is_bounded_where_one_step_makes_the_loss_clearly_worse(
    losses: tuple[float, ...], greatest: float | None
) -> None:
    assert greatest_rate((1e-4, 2e-4, 3e-4, 4e-4), losses) == greatest


@pytest.mark.parametrize("trials", [1, 2, 5, 16, 33])
def test_the_steps_of_halving_are_those_that_its_rule_lets_trials_take(trials: int) -> None:
    some, steps = [trial_of(number, "paused") for number in range(1, trials + 1)], 0
    for one in some:
        one.scores.append((STOPS[0], float(one.number)))
        steps += STOPS[0] + COOLDOWN
    while going := going_on(some, len(STOPS) - 1, ETA, True):
        for one in (some[number - 1] for number in going):
            before = one.scores[-1][0]
            after = STOPS[STOPS.index(before) + 1]
            one.scores.append((after, float(one.number)))
            steps += after - before + (COOLDOWN if after < STOPS[-1] else 0)
            one.state = "finished" if after == STOPS[-1] else "paused"
    assert steps == halving_steps(trials, STOPS, COOLDOWN)


@pytest.mark.parametrize("budget", [{"runs": 4}, {"tokens": 4000}, {"runs": 2}, {"runs": 16}, {"trials": 8}])
def test_a_budget_pays_for_the_trials_that_it_plans(tmp_path: Path, budget: dict[str, Any]) -> None:
    sweep = sweep_with(tmp_path, budget=budget)
    plan = budget_plan(sweep, 100, tokens_per_run=1000)
    if "trials" in budget:
        assert plan.compared + plan.whole_runs == budget["trials"] and plan.whole_runs == 2
        return
    runs, compared = budget.get("runs", 4), int(plan.compared)
    used, more = (compared_steps(sweep, count, 100) / 100 for count in (compared, compared + 1))
    if compared == BRACKETED:
        assert used + plan.whole_runs <= runs < used + plan.whole_runs + 1
        return
    assert used + plan.whole_runs <= runs < more + plan.whole_runs and plan.whole_runs == max(runs // 3, 1)


def test_a_budget_of_one_trial_is_a_whole_run_and_one_of_a_run_is_too_little(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path, budget={"trials": 1})
    assert budget_plan(sweep, 100, 1000).compared == 0
    said = "it pays for at most 1.2 runs, but one trial with its cool-downs takes 1.35"
    assert said in str(budget_problem(sweep, 100, 1.2))
    assert budget_problem(sweep, 100, 1.36) is None


def test_without_rungs_all_trials_are_equal(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path, algorithm="random", budget={"runs": 3})
    assert budget_plan(sweep, 100, 1000) == BudgetPlan(math.inf, 0, 1.0, runs=3)

    grid = sweep_with(tmp_path, algorithm="grid", space={"learning_rate": [1e-4, 1e-3]})
    assert budget_plan(grid, 100, 1000).compared == 2


def test_a_large_budget_is_counted_at_once_and_has_no_copies_of_a_whole_run(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path, prior={RATE: 1e-4}, space={RATE: {"min": 1e-6, "max": 1e-2}}, budget={"runs": 1e6})
    began = time.process_time()
    plan = budget_plan(sweep, 100, 1.0)
    assert time.process_time() - began < 1.0
    assert plan.whole_runs == 5 and plan.compared == BRACKETED
