"""When a run that no longer gets better ends."""

from __future__ import annotations

import pytest

from jobs.remedies.early_stopping import stops_early
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


def test_a_threshold_needs_patience() -> None:
    with pytest.raises(ValueError, match="early_stopping_threshold needs early_stopping_patience"):
        Eval(eval_steps=10, early_stopping_threshold=0.1)


def test_it_never_ends_without_patience_or_without_a_score() -> None:
    assert not stops_early(Eval(eval_steps=10), BEST, 1000)
    patient = Eval(eval_steps=10, early_stopping_patience=1)
    assert not stops_early(patient, None, 1000), "every score was not finite"
    assert not stops_early(patient, BEST, None)
