"""A sweep heeds `fleetune stop` as a run does."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import DataError, RunFailed, SpecError
from jobs.drivers.stop_request import StopRelay, StopRequest
from jobs.run.attempts import take_run
from jobs.run.outcome import Status
from jobs.run.paths import JobPaths
from jobs.run.record import how_to_go_on, outcome_of_error
from jobs.run.requests import ask_to_stop
from jobs.search.changes import Change, Changes
from jobs.search.driver import searching
from jobs.search.driver.conclusion import concluded_sweep
from jobs.search.driver.trial_files import ask_to_save_and_end
from jobs.search.driver.warm_gang import GangLost
from jobs.search.ledger import Ledger
from jobs.search.rules.budget import checked_plan
from jobs.search.rules.checking import stored_sweep
from jobs.search.trials import Trials
from jobs.search.tuning.tuner import halved
from jobs.spec.load import load_sweep
from jobs.training.mailbox import Answer, GangTask


class NoGangs(list[Any]):
    """Gangs that have left a log."""

    num_workers_held = 1

    def log_of(self, reason: str) -> tuple[str, str]:
        return "rank-0.log", f"Traceback of {reason}"

    def begin_no_more(self) -> None:
        pass


def search_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **rules: Any) -> searching.Search:
    """A search by halving that may begin two trials; nothing trains them."""
    base = {
        "model": {"path": "model", "task": "sequence-classification", "num_labels": 2},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.1},
    }
    rules = {"algorithm": "random", "scheduler": "halving", "budget": {"trials": 2}, **rules}
    (folder / "spec.json").write_text(json.dumps({"kind": "sweep", "base": base, **rules}))
    sweep, paths = load_sweep(str(folder / "spec.json")), JobPaths(str(folder))
    assert sweep is not None
    monkeypatch.setattr(searching, "_LOOK_EVERY_S", 0.0)
    ledger = Ledger(sweep, paths.root, lambda spec: 8, 100.0)
    parts: list[Any] = [ledger, paths, str(folder / "own"), NoGangs(), lambda kind, said, **data: print(kind, said)]
    plan, nodes = checked_plan(sweep, 8, 100.0, 0.0), SimpleNamespace(look=lambda leaving: None)
    relay = StopRelay(StopRequest(), paths, parts[-1])
    return searching.Search(*parts, relay, plan, nodes)  # type: ignore[call-arg]


def request_stop(search: searching.Search) -> None:
    """Stop the search as the driver does when it sees what `fleetune stop` leaves."""
    ask_to_stop(search.paths.root)
    search._relay.stop.look_for_file(search.paths)


def test_what_fleetune_stop_leaves_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path, monkeypatch)
    assert not search.asked_to_stop() and search.next_kind() == "compared"
    request_stop(search)
    assert search.asked_to_stop() and search.next_kind() == "stopped"
    outcome = concluded_sweep(search)
    assert outcome.status is Status.INTERRUPTED and str(outcome.reason).startswith("stopped on request")


def test_a_stop_before_all_trials_have_begun_compares_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_in(tmp_path, monkeypatch)
    ledger = search.ledger
    for rate, loss in ((1e-4, 0.5), (1e-3, 0.4)):
        trial = ledger.add({"learning_rate": rate})
        ledger.answered(trial, Answer(status="paused", step=2, total_steps=8, metrics={"eval_loss": loss}))
    assert halved(ledger, search.next_kind()) == [2]
    request_stop(search)
    assert halved(ledger, search.next_kind()) == []


def test_where_all_rates_have_failed_no_whole_run_is_begun_at_the_best_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"algorithm": "auto", "prior": {"learning_rate": 1e-4}, "budget": {"trials": 3}}
    search = search_in(tmp_path, monkeypatch, **rules)
    ledger = search.ledger
    for rate in (1e-4, 1e-3):
        ledger.answered(ledger.add({"learning_rate": rate}), Answer(status="failed", reason="diverged"))
    assert search.next_kind() == "done"
    with pytest.raises(RunFailed, match="2 of 2 ended so: diverged"):
        concluded_sweep(search)
    assert "log the end of rank-0.log:\nTraceback of diverged" in capsys.readouterr().out


def fail(ledger: Ledger, rates: list[float], **answer: Any) -> None:
    for rate in rates:
        ledger.answered(ledger.add({"learning_rate": rate}), Answer(status="failed", reason="out of memory", **answer))


def test_a_search_that_gave_up_says_so_and_offers_no_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path, monkeypatch, algorithm="random", scheduler="none", budget={"trials": 10})
    fail(search.ledger, [1e-5 * number for number in range(1, 9)])
    assert search.next_kind() == "done"
    with pytest.raises(RunFailed, match=r"8 of 8 .* gave up after 8 failures; 2 of 10 trials were not tried") as caught:
        concluded_sweep(search)
    assert how_to_go_on(search.paths, outcome_of_error(caught.value), is_search=True) is None


def test_a_search_whose_budget_ended_before_a_success_names_what_extends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_in(tmp_path, monkeypatch, algorithm="random", scheduler="none", budget={"trials": 2})
    fail(search.ledger, [1e-5, 2e-5])
    with pytest.raises(
        RunFailed, match=r"begin no trial: extend the budget \(fleetune sweep extend .*\), or start a new"
    ):
        concluded_sweep(search)


def test_a_grid_tries_all_points_though_many_have_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [1e-5 * number for number in range(1, 11)]
    rules = {"algorithm": "grid", "scheduler": "none", "space": {"learning_rate": rates}, "budget": {"trials": 10}}
    search = search_in(tmp_path, monkeypatch, **rules)
    fail(search.ledger, rates[:9])
    assert search.next_kind() == "compared"
    fail(search.ledger, rates[9:])
    with pytest.raises(RunFailed, match=r"10 of 10 .* A resume would begin no trial: start a new sweep"):
        concluded_sweep(search)


def test_trials_whose_metric_failed_are_left_to_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path, monkeypatch)
    fail(search.ledger, [1e-5, 2e-5], metric_failed="later")
    with pytest.raises(RunFailed, match="A resume tries the trials again whose metric failed") as caught:
        concluded_sweep(search)
    assert how_to_go_on(search.paths, outcome_of_error(caught.value), is_search=True) is not None


def test_a_metric_that_fails_before_the_first_step_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_in(tmp_path, monkeypatch)
    failed = Answer(status="failed", reason="eval.metrics: own:f failed: ValueError", metric_failed="before")
    with pytest.raises(DataError, match=r"own:f failed: ValueError\. It fails before the first step"):
        search._check_metric(failed)
    search._check_metric(failed.model_copy(update={"metric_failed": "later"}))
    assert not search.ledger.trials, "it is no trial's failure, so a resume begins again"


def test_only_where_all_trials_have_diverged_is_another_attempt_useless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {
        1e-2: Answer(status="failed", reason="the loss of step 3 is nan", diverged=True),
        1e-1: Answer(status="finished", step=8, total_steps=8, metrics={"eval_loss": float("inf")}),
        1.0: Answer(status="failed", reason="its gang was lost 3 times"),
    }
    rules = {"algorithm": "auto", "prior": {"learning_rate": 1e-4}, "budget": {"trials": 3}}
    search = search_in(tmp_path, monkeypatch, **rules)
    useless = []
    for rate, answer in ends.items():
        search.ledger.answered(search.ledger.add({"learning_rate": rate}), answer)
        with pytest.raises(RunFailed) as failure:
            concluded_sweep(search)
        useless.append(outcome_of_error(failure.value).diverged)
        assert ("usually lower learning rates" in str(failure.value)) == useless[-1]
    assert useless == [True, True, False]


@pytest.mark.parametrize(("loss", "is_told"), [(0.5, False), (15.6, True)])
def test_a_best_trial_that_is_worse_than_the_base_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loss: float, is_told: bool
) -> None:
    search = search_in(tmp_path, monkeypatch, then="nothing")
    for rate, after in ((0.7, loss), (1.0, 45.7)):
        answer = Answer(
            status="finished", step=8, total_steps=8, metrics={"eval_loss": after}, base={"eval_loss": 0.69}
        )
        search.ledger.answered(search.ledger.add({"learning_rate": rate}), answer)
    assert concluded_sweep(search).status is Status.SUCCEEDED
    said = "eval_loss of the best trial is worse than before training: 15.6 after 0.69"
    assert (said in capsys.readouterr().out) is is_told


@pytest.mark.parametrize("resumed", [True, False])
def test_workers_of_an_earlier_driver_do_not_take_part_in_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    search, tasks = search_in(tmp_path, monkeypatch, then="export"), list[GangTask]()
    trial = search.ledger.add({"learning_rate": 1e-4})
    trial.driver = take_run(trial.paths)
    search.ledger.answered(trial, Answer(status="finished", step=8, total_steps=8, metrics={"eval_loss": 0.5}))
    earlier = trial.driver
    if resumed:
        trial.driver = ""  # the ledger does not store it

    def carry_out(task: GangTask) -> Answer:
        tasks.append(task)
        return Answer(status="exported")

    search.gangs.carry_out = carry_out  # type: ignore[method-assign]
    assert concluded_sweep(search).model_path == trial.paths.model
    assert tasks[0].driver == Path(trial.paths.driver).read_text()
    assert (tasks[0].driver == earlier) is not resumed


@pytest.mark.parametrize("lost", [False, True])
def test_a_stop_is_heard_while_the_model_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The export may take minutes, or its gang may be stopped too."""
    search, ended = search_in(tmp_path, monkeypatch, then="export"), threading.Event()
    trial = search.ledger.add({"learning_rate": 1e-4})
    search.ledger.answered(trial, Answer(status="finished", step=8, total_steps=8, metrics={"eval_loss": 0.5}))

    def carry_out(task: GangTask) -> Answer:
        request_stop(search)
        if lost:
            raise GangLost("its node is gone")
        ended.wait(60)
        return Answer(status="exported")

    search.gangs.carry_out = carry_out  # type: ignore[method-assign]
    outcome = concluded_sweep(search)
    ended.set()
    assert outcome.status is Status.INTERRUPTED and "while the model of trial 1 was exported" in str(outcome.reason)


def test_a_trial_that_waits_is_stopped_by_a_user_and_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the request was left while the sweep had no driver; a stop of the whole sweep stops no trial for good."""
    search = search_in(tmp_path, monkeypatch)
    ledger = search.ledger
    paused, interrupted, begun = (ledger.add({"learning_rate": rate}) for rate in (1e-5, 2e-5, 3e-5))
    ledger.answered(paused, Answer(status="paused", step=2, total_steps=8, metrics={"eval_loss": 0.5}))
    ledger.answered(interrupted, Answer(status="stopped", step=1, total_steps=8))
    ask_to_stop(paused.paths.root, is_trial=True)
    ask_to_save_and_end(interrupted.paths)
    ask_to_save_and_end(paused.paths)
    ask_to_stop(begun.paths.root, is_trial=True)
    begun.state = "running"  # Ray Tune has begun it, and the driver has seen no request of it yet
    search._stop_paused()
    assert search._train(begun) == Answer(status="stopped") and not begun.driver
    assert [trial.state for trial in ledger.trials.values()] == ["stopped", "paused", "running"]
    assert paused.reason == "stopped on request after step 2"
    ledger.close()
    assert Trials(ledger.sweep, ledger.root).trials[1].state == "stopped"


def test_no_trial_is_shown_as_running_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path, monkeypatch)
    ledger = search.ledger
    begun, new = (ledger.add({"learning_rate": rate}) for rate in (1e-4, 1e-3))
    begun.step = 3
    for trial in (begun, new):
        ledger.began(trial)
    search._stop_running()
    assert (begun.state, new.state) == ("paused", "waiting")


def test_a_metric_that_the_job_does_not_report_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless some trial had it: then the trial alone has failed."""
    search = search_in(tmp_path, monkeypatch)
    first = search.ledger.add({"learning_rate": 1e-4})
    other = Answer(status="failed", metrics={"eval_f1": 0.5})
    with pytest.raises(SpecError, match="metric: the job reports no eval_loss; it reports eval_f1"):
        search._check_metric(other)
    search._check_metric(Answer(status="failed", reason="diverged"))
    search.ledger.answered(first, Answer(status="paused", step=2, metrics={"eval_loss": 0.5}))
    search._check_metric(other)


def test_a_change_on_the_way_makes_the_budget_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path, monkeypatch)
    for _ in range(2):
        assert search.next_kind() == "compared"
        search.ledger.add({"learning_rate": 1e-4})
    assert search.next_kind() == "wait"
    changes = Changes(search.paths)
    for more in (1, 2):
        changes.ask(Change(more={"trials": more}))
    search._look_at_changes()
    assert search.next_kind() == "compared" and search.ledger.sweep.budget.trials == 5
    kept = load_sweep(search.paths.spec)
    assert kept is not None and kept.budget.trials == 5 and not list(changes.waiting())
    search._finished.set()  # Ray Tune asks for no trial any more
    changes.ask(Change(more={"trials": 1}))

    search._look_at_changes()
    assert search.next_kind() == "done" and len(list(changes.waiting())) == 1


def test_a_change_that_could_not_be_removed_is_not_applied_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by the next driver, if this one was killed before it removed the change."""
    search = search_in(tmp_path, monkeypatch)
    changes = Changes(search.paths)
    changes.ask(Change(more={"trials": 3}))
    ((name, change),) = changes.waiting()
    search._take_over(name, change)
    search.ledger.close()
    ledger = Ledger(stored_sweep(search.paths), search.paths.root, lambda spec: 8, 100.0)
    assert ledger.sweep.budget.trials == 5
    search.ledger = ledger
    search._look_at_changes()
    assert ledger.sweep.budget.trials == 5 and not list(changes.waiting())
    changes.ask(Change(more={"trials": 3}))
    search._look_at_changes()
    assert ledger.sweep.budget.trials == 8


def test_repeats_that_the_budget_has_no_time_for_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"scheduler": "none", "budget": {"minutes": 1e-6}, "seeds": 3, "then": "nothing"}
    search = search_in(tmp_path, monkeypatch, **rules)
    trial = search.ledger.add({"learning_rate": 1e-4})
    search.ledger.answered(trial, Answer(status="finished", step=8, metrics={"eval_loss": 0.5}, seconds=1.0))
    assert search.next_kind() == "done"
    assert concluded_sweep(search).status is Status.SUCCEEDED
    assert "warning the budget has no time for 2 repeats of the best trials" in capsys.readouterr().out
