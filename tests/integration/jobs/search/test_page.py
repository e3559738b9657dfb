"""The page of a sweep: complete, and without anything to load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.errors import InputError
from jobs.search.ledger import Ledger
from jobs.search.report.page import FEWEST_FOR_IMPORTANCE, importance, sweep_page
from jobs.training.mailbox import Answer
from tests.unit.jobs.search.report.test_summary import ledger_with, response
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of


def test_the_page_shows_the_trials_and_loads_nothing(tmp_path: Path) -> None:
    rates = [1e-5 * 1.6**number for number in range(FEWEST_FOR_IMPORTANCE)]
    page = sweep_page(ledger_with(tmp_path, {rate: response(rate, 2.5e-4) for rate in rates}))
    for title in ("over the learning rate", "and warmup_ratio", "so far", "of each trial", "importance for"):
        assert title in page, title
    body = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "a parabola through the scores after step 10 has its optimum at learning_rate 0.00025" in body
    assert len(re.findall("finished", body)) == FEWEST_FOR_IMPORTANCE
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"?(https?:)?//", page)


def test_the_importance_is_of_scores_after_the_same_share_of_a_run(tmp_path: Path) -> None:
    """The last trial is scored after half of its steps first. That score is not compared with those of whole runs."""
    rates = [1e-5 * 1.6**number for number in range(FEWEST_FOR_IMPORTANCE - 1)]
    ledger = ledger_with(tmp_path, {rate: response(rate, 2.5e-4) for rate in rates})
    last = ledger.add({"learning_rate": 1e-3, "warmup_ratio": 0.1})
    ledger.answered(last, Answer(status="paused", step=5, tokens=50, metrics={"eval_loss": 9.0}))
    assert importance(ledger) is None
    ledger.answered(last, Answer(status="finished", step=10, tokens=100, metrics={"eval_loss": 0.7}))
    figure = importance(ledger)
    assert figure is not None and "after 100% of a run" in figure.layout.title.text


def test_a_sweep_without_a_score_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to plot"):
        sweep_page(Ledger(sweep_of(tmp_path, BASE), str(tmp_path / "found-1"), lambda spec: 10, 100.0))
