"""A task whose gang is lost is given to another gang, and what the lost one has trained is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import MachinesFailed
from jobs.run.checkpoints import commit_path, newest_step_if_known
from jobs.run.paths import JobPaths
from jobs.search.driver import drive, searching
from jobs.search.driver.conclusion import concluded_sweep
from jobs.search.driver.trial_files import unanswered
from jobs.search.driver.warm_gang import GangLost
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.storage import files as storage
from jobs.training.mailbox import Answer, GangTask, Request
from tests.integration.jobs.search.test_stops import search_in

FINISHED = Answer(status="finished", step=8, total_steps=8, tokens=30, metrics={"eval_loss": 0.5})


def save(paths: JobPaths, step: int) -> None:
    """Leave what a checkpoint of this step leaves, as far as a driver looks at it, and metrics of some steps."""
    storage.write_bytes(commit_path(paths, step), b"{}")
    lines = [json.dumps({"step": one, "loss": 1.0, "tokens": 10, "step_time_s": 0.5}) for one in (step - 1, step)]
    storage.write_bytes(storage.join(paths.metrics, f"{step:020d}-0.jsonl"), "\n".join(lines).encode())


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> searching.Search:
    return search_in(tmp_path, monkeypatch, then="nothing", scheduler="none", space={"learning_rate": [1e-5, 1e-4]})


def served(search: searching.Search, rate: float, answers: Iterator[Any]) -> Trial:
    """Have a trial trained by gangs that are lost, or answer, as `answers` says: a step saved before a loss."""
    trial = search.ledger.add({"learning_rate": rate})

    def carry_out(task: GangTask) -> Answer:
        answer = next(answers)
        if isinstance(answer, Answer):
            return answer
        if callable(answer):
            made: Answer = answer(trial)
            return made
        if answer:
            save(trial.paths, answer)
        raise GangLost("its node is gone")

    search.gangs.carry_out = carry_out  # type: ignore[method-assign]
    search._mailbox.requests.put(f"{trial.number:04d}", Request(trial=trial.number))
    search._answer(f"{trial.number:04d}")
    return trial


def test_losses_count_only_without_a_newer_checkpoint(search: searching.Search) -> None:
    trial = served(search, 1e-4, iter([0, 0, 2, 0, 4, 0, FINISHED]))
    assert trial.state == "finished" and (trial.tokens, trial.seconds) == (2 * 10 + 2 * 10 + 30, 4 * 0.5)


def test_a_combination_whose_gangs_were_lost_is_named_and_tried_again_by_a_resume(
    search: searching.Search, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = served(search, 1e-5, iter([0, 0, 0]))
    assert lost.state == "failed" and "lost 3 times without a newer checkpoint" in str(lost.reason)
    with pytest.raises(MachinesFailed, match="1 of 1 ended so: its gang was lost 3 times"):
        concluded_sweep(search)
    served(search, 1e-4, iter([FINISHED]))
    concluded_sweep(search)
    said = capsys.readouterr().out
    assert "not tried to the end, because gangs were lost: trial 1 (learning_rate 1.0e-05)" in said
    assert f"fleetune run --resume {search.paths.root}" in said


def test_a_trial_whose_gangs_were_lost_keeps_its_checkpoints_for_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_in(tmp_path, monkeypatch, scheduler="none", budget={"trials": 5}, checkpoints_gb=1e-9)
    trials = [served(search, 1e-5, iter([2, 0, 0]))]
    for rate in (1e-4, 2e-4, 3e-4, 4e-4):
        trials.append(served(search, rate, iter([2, FINISHED])))
    assert trials[0].lost
    assert [newest_step_if_known(trial.paths) for trial in trials] == [2, 2, 2, 2, 0]


def test_a_loss_after_a_stop_leaves_the_trial_to_a_resume(search: searching.Search) -> None:
    search._relay.stop.ask("signal", "SIGTERM")
    trial = search.ledger.add({"learning_rate": 1e-4})
    search.gangs.carry_out = lambda task: (_ for _ in ()).throw(GangLost("gone"))  # type: ignore[method-assign]
    search._mailbox.requests.put("0001", Request(trial=1))
    search._serve("0001")
    assert search._failed is None and not trial.is_over


def test_what_a_failed_trial_was_trained_counts(search: searching.Search) -> None:
    """A gang that answers tells the seconds of its task, but not the steps before the loss was not a number."""
    for rate, seconds, expected_s in ((1e-5, 7.0, 7.0), (1e-4, 0.0, 2 * 0.5)):

        def diverged(trial: Trial, took_s: float = seconds) -> Answer:
            save(trial.paths, 6)
            storage.remove_dir(trial.paths.checkpoints)
            return Answer(status="failed", reason="the loss of step 7 is nan", diverged=True, seconds=took_s)

        trial = served(search, rate, iter([diverged]))
        assert (trial.state, trial.step, trial.tokens, trial.seconds) == ("failed", 6, 20, expected_s)


def test_what_a_search_uses_is_recorded_without_answers_too(search: searching.Search) -> None:
    search._look()
    assert not search.ledger.spent
    search._recorded_s -= 61.0
    search._look()
    search.ledger.close()
    assert Trials(search.ledger.sweep, search.ledger.root).spent.keys() == {"own"}


def test_a_driver_takes_no_name_of_an_earlier_one() -> None:
    """It would read the earlier one's tasks, and replace what that one has used."""
    assert [drive.next_driver(names) for names in ([], ["01", "02"], ["02"], ["99", "notes"])] == [
        "01", "03", "03", "100",
    ]  # fmt: skip


def test_steps_whose_metrics_are_lost_count_with_the_mean(search: searching.Search) -> None:
    trial = search.ledger.add({"learning_rate": 1e-4})
    assert unanswered(trial, 96.0) is None
    save(trial.paths, 5)
    assert unanswered(trial, 96.0) == (5, 3 * 12 + 2 * 10, 2 * 0.5)
