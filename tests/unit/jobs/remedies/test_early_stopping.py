"""When a run that no longer gets better ends."""

from __future__ import annotations

import pytest

from jobs.remedies.early_stopping import end_report, stops_early
from jobs.run.checkpoints import Best
from jobs.spec.evaluation import Eval

BEST = Best(metric="eval_loss", greater_is_better=False, step=20, score=0.5)


@pytest.mark.parametrize(
    ("evaluated_at", "ends"),
    [(20, False), (30, False), (40, False), (50, True), (53, True), (60, True)],
)
def test_it_ends_after_three_evaluations_without_a_better_score(evaluated_at: int, ends: bool) -> None:
    rule = Eval(eval_steps=10, early_stopping_patience=3)
    assert stops_early(rule, BEST, evaluated_at) is ends


def test_a_best_score_that_is_better_by_too_little_does_not_count() -> None:
    rule = Eval(eval_steps=10, early_stopping_patience=3, early_stopping_threshold=0.1)
    slow = BEST.model_copy(update={"improved_at": 10})
    assert not stops_early(rule, slow, 30) and stops_early(rule, slow, 40)


def test_a_run_that_ends_while_it_improves_slowly_says_so() -> None:
    rule = Eval(eval_steps=10, early_stopping_patience=2, early_stopping_threshold=0.1)
    slow = BEST.model_copy(update={"improved_at": 0})
    report = end_report(rule, slow, score=0.5, step=20, total=90)
    assert "improved by 0.1 (eval.early_stopping_threshold) or less in each of 2 evaluations" in report.cause
    assert report.cause.endswith("0.5 now is the best")
    assert report.advice is not None and "early_stopping_threshold" in report.advice
    still = end_report(rule, BEST, score=0.6, step=40, total=90)
    assert still.cause == "eval_loss has not improved in 2 evaluations: 0.5 after step 20, 0.6 now"
    assert still.advice == "train for about 20 steps, or with more data"


def test_a_threshold_needs_patience() -> None:
    with pytest.raises(ValueError, match="early_stopping_threshold needs early_stopping_patience"):
        Eval(eval_steps=10, early_stopping_threshold=0.1)


def test_it_never_ends_without_patience_or_without_a_score() -> None:
    assert not stops_early(Eval(eval_steps=10), BEST, 1000)
    patient = Eval(eval_steps=10, early_stopping_patience=1)
    assert not stops_early(patient, None, 1000), "every score was not finite"
    assert not stops_early(patient, BEST, None)
