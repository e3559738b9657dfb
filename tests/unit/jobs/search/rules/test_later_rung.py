"""`auto` compares trials later if nothing has been learned at its first rung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.search.ledger import Ledger
from jobs.search.planned import plan_if_later
from jobs.search.rules.auto import LATER, is_too_early
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.sweep import SweepSpec
from jobs.training.mailbox import Answer
from tests.unit.jobs.search.rules.test_auto import RATE, WARMUP, base_of, scored_at, sweep_with


def at_rung(ledger: Ledger, trial: Trial, loss: float, step: int = 25) -> None:
    answer = Answer(status="paused", step=step, metrics={"eval_loss": loss}, base={"eval_loss": 0.693})
    ledger.answered(trial, answer)


def test_where_nothing_is_learned_at_the_first_rung_trials_are_compared_at_the_later_one(tmp_path: Path) -> None:
    """Losses as measured: MiniLM with seed 42, after a quarter of a run, where their order is noise, and after half."""
    ledger = scored_at(tmp_path, {}, budget={"runs": 3.2})
    first, second, third = (ledger.add({RATE: rate, WARMUP: 0.06}) for rate in (1e-4, 1.78e-4, 3.16e-4))
    at_rung(ledger, first, 0.674)
    assert not ledger.is_too_early and plan_if_later(ledger) is not None
    at_rung(ledger, second, 0.690)
    assert ledger.is_too_early and ledger.going_on == []
    ledger.set_later()
    assert not ledger.is_too_early and ledger.moved_to_later_rung == [1, 2]
    at_rung(ledger, third, 0.685)  # was on its way to the first rung
    assert ledger.moved_to_later_rung == [1, 2, 3] and ledger.going_on == []
    for trial, loss in ((first, 0.615), (second, 0.569), (third, 0.629)):
        at_rung(ledger, trial, loss, step=50)
    target = 1.71e-4 * 0.5**0.32  # of the parabola through the three
    assert (
        ledger.moved_to_later_rung == [] and ledger.target == pytest.approx(target, rel=0.01) and ledger.going_on == []
    )
    ledger.close()
    next_driver = Ledger(scored_sweep(ledger), ledger.root, lambda spec: 100, 1000.0)
    for again in (ledger, Trials(scored_sweep(ledger), ledger.root), next_driver):
        assert again.is_later and again.sweep.rung_shares == LATER and again.base_score == 0.693
        assert [trial.scores for trial in again.searched] == [[(50, 0.615)], [(50, 0.569)], [(50, 0.629)]]


def scored_sweep(ledger: Ledger) -> SweepSpec:
    """The spec as it is on storage, which says nothing of rungs."""
    return ledger.sweep.model_copy(update={"rungs": None})


@pytest.mark.parametrize(
    ("losses", "fields", "later"),
    [
        ((0.690, 0.684), {}, True),
        ((0.690, 0.650), {}, False),  # one is 6 % better than the base model
        ((0.690,), {}, False),
        ((0.690, 0.684), {"rungs": [0.25]}, False),  # the user's own
        ((0.690, 0.684), {"scheduler": "none"}, False),
        ((0.690, 0.684, 0.688, 0.691), {}, False),  # the budget does not pay for four to the later rung
        ((0.690, 0.684, 0.688, 0.691), {"budget": {"runs": 4}}, True),
        ((0.690, 0.684), {"budget": {"runs": 1.5}}, False),
    ],
)
def test_the_later_rung_is_for_default_rungs_and_for_what_the_budget_pays(
    tmp_path: Path, losses: tuple[float, ...], fields: dict[str, Any], later: bool
) -> None:
    ledger = scored_at(tmp_path, {}, **fields)
    for number, loss in enumerate(losses):
        at_rung(ledger, ledger.add({RATE: 1e-4 * 1.5**number, WARMUP: 0.06}), loss)
    assert (ledger.is_too_early and plan_if_later(ledger) is not None) == later


def test_a_metric_of_which_more_is_better_is_too_early_if_it_has_not_grown(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path, metric="accuracy", base={**base_of(tmp_path), "eval": {"metrics": ["accuracy"]}})
    assert is_too_early(sweep, 0.5, [0.51, 0.49]) and not is_too_early(sweep, 0.5, [0.51, 0.54])
    assert not is_too_early(sweep, None, [0.51, 0.49])
