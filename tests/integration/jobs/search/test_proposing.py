"""What Optuna is told of the trials, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.search.ledger import Ledger
from jobs.search.rules.prior import with_prior
from jobs.search.tuning.proposing import Proposer
from jobs.training.mailbox import Answer
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

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
        proposer.tell(trial)
        if trial is trials[0]:
            assert told_to(proposer) == [], "there is nothing to compare it with"
    worst = 0.7 if mode == "min" else 0.5
    assert told_to(proposer) == [0.5, 0.5, 0.7, worst]
    assert told_to(Proposer(ledger)) == told_to(proposer), "the next driver tells the same"


def test_with_several_rungs_the_first_whole_run_has_the_rate_that_the_best_trial_leads_to(tmp_path: Path) -> None:
    """Compared trials that were trained to their end are no whole runs there."""
    sweep = with_prior(sweep_of(tmp_path, BASE, space=RATE, rungs=[0.25, 0.5], prior={"learning_rate": 1e-4}))[0]
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 100, 100.0)
    trial = ledger.add({"learning_rate": 2e-4})
    for status, step in (("paused", 25), ("paused", 50), ("finished", 100)):
        answer = Answer.model_validate({"status": status, "step": step, "metrics": {"eval_loss": 0.5}})
        ledger.answered(trial, answer)
    assert Proposer(ledger).next_values(is_whole=True) == {"learning_rate": pytest.approx(2e-4 * 0.25**0.32)}


def test_a_grid_changes_the_engine_as_rarely_as_possible(tmp_path: Path) -> None:
    space = {"learning_rate": [1e-5, 1e-4], "global_batch_size": [8, 16], "warmup_ratio": [0.0, 0.1]}
    sweep = sweep_of(tmp_path, BASE, space=space, algorithm="grid")
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 100, 100.0)
    proposer = Proposer(ledger)
    points = [ledger.add(proposer.next_values()).values for _ in range(8)]
    assert [point["global_batch_size"] for point in points] == [8] * 4 + [16] * 4
    assert [point["learning_rate"] for point in points[:4]] == [1e-5, 1e-5, 1e-4, 1e-4], "else as in the spec"
    assert len({tuple(point.values()) for point in points}) == 8 and list(points[0]) == list(space)


@pytest.mark.parametrize(("algorithm", "trials"), [("auto", 7), ("gp", 16)])
def test_the_end_of_a_range_is_proposed_once(tmp_path: Path, algorithm: str, trials: int) -> None:
    """Where the scores are the better the nearer to the end."""
    space = {"warmup_ratio": {"min": 0.0, "max": 0.2}}
    sweep = with_prior(sweep_of(tmp_path, BASE, space=space, algorithm=algorithm, budget={"trials": 20}))[0]
    ledger = Ledger(sweep, str(tmp_path / "found"), lambda spec: 100, 100.0)
    proposer = Proposer(ledger)
    for _ in range(trials):
        trial = ledger.add(proposer.next_values())
        loss = 0.5 + trial.values["warmup_ratio"]
        ledger.answered(trial, Answer(status="finished", step=100, metrics={"eval_loss": loss}))
        proposer.tell(trial)
    warmups = [trial.values["warmup_ratio"] for trial in ledger.searched]
    assert len(set(warmups)) == len(warmups) and min(warmups) < 1e-3


@pytest.mark.parametrize("algorithm", ["auto", "random", "tpe", "gp"])
def test_no_values_of_lists_are_proposed_twice_also_by_the_next_driver(tmp_path: Path, algorithm: str) -> None:
    """Samplers of Optuna would propose the best ones again, which would train the same run again."""
    space = {"learning_rate": [1e-5, 1e-4, 1e-3, 1e-2]}
    sweep = with_prior(sweep_of(tmp_path, BASE, space=space, algorithm=algorithm, budget={"trials": 4}))[0]
    proposed = []
    for drivers in (1, 4):
        ledger = Ledger(sweep, str(tmp_path / f"found-{drivers}"), lambda spec: 10, 100.0)
        proposer = Proposer(ledger)
        for number in range(4):
            if number and drivers > 1:
                proposer = Proposer(ledger)
            trial = ledger.add(proposer.next_values())
            loss = abs(trial.values["learning_rate"] - 1e-4)
            ledger.answered(trial, Answer(status="finished", step=10, metrics={"eval_loss": loss}))
            proposer.tell(trial)
        proposed.append([trial.values["learning_rate"] for trial in ledger.searched])
    assert sorted(proposed[0]) == space["learning_rate"] and proposed[0] == proposed[1]
