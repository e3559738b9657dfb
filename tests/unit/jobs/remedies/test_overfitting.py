"""Overfitting is told from the losses of a run, and only where both kinds of loss show it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from jobs.remedies.overfitting import overfits, report_of, with_loss, with_score
from jobs.run.checkpoints import LossTrend
from jobs.run.remedies import format_trouble, trouble_rows, troubles_of
from jobs.spec.finetune import Spec
from tests.support import tiny

EVERY = 10  # steps from one evaluation to the next


def trend_of(training: list[float], held_out: list[float | None], before: float | None = None) -> LossTrend:
    """The trend after evaluations, each of which follows ten steps with the same training loss."""
    trend = with_score(LossTrend(), before, 0)
    for number, (loss, score) in enumerate(zip(training, held_out, strict=True), 1):
        for _ in range(EVERY):
            trend = with_loss(trend, loss)
        trend = with_score(trend, score, number * EVERY)
    return trend


@pytest.mark.parametrize(
    ("training", "held_out", "expected"),
    [
        ([3.0, 2.0, 1.0, 0.5], [2.5, 2.4, 2.5, 2.6], True),
        ([3.0, 2.0, 1.0], [2.5, 2.4, 2.5], False),  # one evaluation may be chance
        ([3.0, 2.0, 1.0, 0.5], [2.5, 2.4, 2.42, 2.44], False),  # less than two per cent
        ([0.3, 0.2, 0.1, 0.05], [0.05, 0.04, 0.05, 0.05], False),  # nor is a hundredth of a nat much
        ([3.0, 2.0, 2.1, 2.2], [2.5, 2.4, 2.6, 2.8], False),  # the training loss rises too: the run diverges
        ([3.0, 2.0, 1.0, 0.5, 0.4], [2.5, 2.4, 2.6, 2.3, 2.4], False),  # it got better in between
        ([3.0, 2.0, 1.0, 0.5, 0.4], [2.5, 2.4, 2.6, 2.41, 2.6], False),  # nor are these two in a row
        ([3.0, 2.0, 1.0, 0.5, 0.4], [2.5, 2.4, 2.6, math.nan, 2.7], True),
        ([3.0, 2.0, 1.0, 0.5], [None, None, None, None], False),
        ([3.0, 2.0, math.nan, 0.5], [2.5, 2.4, 2.5, 2.6], True),
    ],
)
def test_overfitting_takes_two_evaluations_and_a_falling_training_loss(
    training: list[float], held_out: list[float | None], expected: bool
) -> None:
    assert overfits(trend_of(training, held_out)) is expected


def test_a_model_that_is_best_before_training_overfits_if_the_training_loss_falls_further() -> None:
    assert overfits(trend_of([3.0, 2.0], [2.6, 2.7], before=2.5))
    assert not overfits(trend_of([3.0, 3.0], [2.6, 2.7], before=2.5))


def test_the_trend_of_a_resumed_run_is_that_of_one_in_one_go() -> None:
    whole = LossTrend()
    for loss in (3.0, 2.0, 1.0):
        whole = with_loss(whole, loss)
    resumed = LossTrend.model_validate_json(with_loss(with_loss(LossTrend(), 3.0), 2.0).model_dump_json())
    assert with_loss(resumed, 1.0) == whole


@pytest.mark.parametrize(
    ("changes", "action", "advice"),
    [
        ({}, "its last state is exported", "set eval.early_stopping_patience: 2"),
        ({"checkpoint__load_best_model_at_end": True}, "the best checkpoint is exported", "use more data"),
        (
            {"eval__general": "/g", "remedies__forgetting": {"max_general_loss_increase": 0.1}},
            "the best checkpoint is exported",
            "use more data",
        ),
        ({"eval__early_stopping_patience": 3}, "until eval.early_stopping_patience is used up", "use more data"),
    ],
)
def test_the_report_has_both_losses_and_what_this_spec_can_change(
    tmp_path: Any, changes: dict[str, Any], action: str, advice: str
) -> None:
    best = {"eval__eval_steps": 10, "checkpoint__metric_for_best_model": "loss", "data__eval_fraction": 0.1}
    spec: Spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "text.jsonl", **(best | changes))
    report = report_of(trend_of([3.0, 2.0, 1.0, 0.5], [2.5, 2.4, 2.5, 2.6]), spec)
    assert "the held-out loss has risen from 2.4 after step 20 to 2.6, while the training loss fell from 2 to 0.5" in (
        report.cause
    )
    assert action in report.action
    assert report.advice is not None and "train for about 20 steps" in report.advice and advice in report.advice
    assert ("early_stopping" in report.advice) == (not changes)


def test_overfitting_that_is_told_again_after_a_resume_is_one_trouble(tmp_path: Any) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "text.jsonl")
    report = report_of(trend_of([3.0, 2.0, 1.0, 0.5], [2.5, 2.4, 2.5, 2.6]), spec)
    at = itertools.count()
    events = [
        {"at": f"2026-12-01T00:00:0{next(at)}Z", "kind": "remedy", "data": {"step": 40, **report._asdict()}}
        for _ in range(2)
    ]
    (trouble,) = troubles_of(events)
    assert trouble.step == 40 and format_trouble(trouble).startswith("the run overfits: ")
    assert [name for name, _ in trouble_rows([trouble])] == ["remedy", "next time"]
