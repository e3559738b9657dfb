"""What Optuna is told of the trials, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.search.ledger import Ledger
from jobs.search.mailbox import Answer
from jobs.search.proposing import Proposer
from tests.unit.test_search_spec import BASE, sweep_of

RATE = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}


def told_to(proposer: Proposer) -> list[float]:
    return [trial.value for trial in proposer._compared._study.trials if trial.value is not None]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_failed_trial_counts_as_the_worst_of_those_before_it_and_never_as_a_number_far_away(
    tmp_path: Path, mode: str
) -> None:
    sweep = sweep_of(tmp_path, BASE, space=RATE, algorithm="gp", mode=mode)
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 10, 100.0)
    proposer = Proposer(ledger)
    trials = [ledger.add(proposer.next_values()) for _ in range(4)]
    ends = [None, 0.5, 0.7, None]  # None: it has failed
    for trial, loss in zip(trials, ends, strict=True):
        end = Answer(status="failed", reason="diverged")
        if loss is not None:
            end = Answer(status="finished", step=10, metrics={"eval_loss": loss})
        ledger.answered(trial, end)
        proposer.told(trial)
        if trial is trials[0]:
            assert told_to(proposer) == [], "there is nothing to compare it with"
    worst = 0.7 if mode == "min" else 0.5
    assert told_to(proposer) == [0.5, 0.5, 0.7, worst]
    assert told_to(Proposer(ledger)) == told_to(proposer), "the next driver tells the same"
