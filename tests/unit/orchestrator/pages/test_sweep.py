"""What is shown of a sweep while it goes on, at every width, is what its driver has written."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import orchestrator.cli.app as cli
from jobs.run.outcome import Event, Outcome, Status, event, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.summary import RunSummary
from jobs.search.ledger import Ledger
from jobs.search.report.status import DriverState, SweepStatus, counts_of, facts, read_status, status_of
from jobs.search.trials import Trials
from jobs.spec.load import dump_spec
from jobs.spec.sweep import Budget
from jobs.storage.files import write_bytes
from jobs.storage.journal import JournalWriter
from jobs.training.mailbox import Answer
from orchestrator.pages.sweep import (
    FEWEST_ROWS,
    MOST_ROWS,
    format_budget,
    format_elapsed,
    screen,
    shown_trials,
    status_page,
)
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

STEPS, TOKENS = 100, 5000.0
BEGAN = datetime.datetime(2026, 11, 27, 9, 0, tzinfo=datetime.UTC)


def ledger_of(folder: Path, **fields: Any) -> Ledger:
    return Ledger(sweep_of(folder, BASE, **fields), str(folder / "found-1"), lambda spec: STEPS, TOKENS)


def answered(ledger: Ledger, loss: float, *, status: Any = "finished", step: int = STEPS) -> int:
    """A new trial with this score, whose training loss is a tenth higher; its number."""
    trial = ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    answer = Answer(status=status, step=step, tokens=50 * step, loss=loss + 0.1, metrics={"eval_loss": loss})
    ledger.answered(trial, answer, ("01", 60.0, 120.0))
    return trial.number


def said(kind: str, at_s: float = 0.0, **data: Any) -> Event:
    return event(kind, "", **data).model_copy(update={"at": after(at_s)})


def after(seconds: float) -> datetime.datetime:
    return BEGAN + datetime.timedelta(seconds=seconds)


def heard(*running: int, planned_steps: int | None = 800, progress: dict[str, Any] | None = None) -> DriverState:
    """From a driver that has begun `BEGAN` and trains these trials."""
    told = DriverState()
    told.update(said("phase", phase="start"))
    told.update(said("phase", phase="workers", driver="01", planned_steps=planned_steps))
    for number in running:
        told.update(said("phase", phase="train", trial=number, until=STEPS))
    if progress is not None:
        told.update(said("trial", trial=999, **progress))
    return told


def record(step: int, loss: float = 0.9) -> dict[str, Any]:
    return {"step": step, "loss": loss, "step_time_s": 2.0}


def status_with(
    ledger: Ledger, told: DriverState, newest: dict[int, Any] | None = None, at_s: float = 90.0
) -> SweepStatus:
    return status_of(ledger, told, newest or {}, after(at_s))


def texts(status: SweepStatus, width: int, height: int = 40) -> list[str]:
    return [text for text, _ in screen(status, width, height)]


@pytest.fixture
def going_on(tmp_path: Path) -> SweepStatus:
    """Two trials have ended, one has failed, one is paused, and the fifth is being trained."""
    ledger = ledger_of(tmp_path, algorithm="random")
    for loss, status, step in ((0.5, "finished", STEPS), (0.4312, "finished", STEPS), (0.7, "paused", 25)):
        answered(ledger, loss, status=status, step=step)
    failed = ledger.add({"learning_rate": 1e-2, "warmup_ratio": 0.1})
    ledger.answered(failed, Answer(status="failed", reason="its loss was nan after step 3", step=3, tokens=150))
    ledger.add({"learning_rate": 3.16e-4, "warmup_ratio": 0.0512})
    return status_with(ledger, heard(5), {5: record(40)})


def test_the_events_tell_which_trials_are_trained() -> None:
    told = heard(1, 2)
    assert told.running == {1, 2} and (told.name, told.began_at) == ("01", BEGAN)
    told.update(said("phase", phase="train", trial=3))  # how far a trial is, which may be told after its end
    told.update(said("trial", trial=1, step=25, state="paused"))
    assert told.running == {2} and told.progress["step"] == 25
    told.update(said("ended"))
    assert not told.running and told.name is None and not told.progress
    told.update(said("phase", phase="train", trial=3, until=10))
    told.update(said("phase", phase="start"))  # the next driver
    assert not told.running


def words_of(told: DriverState, *events: Event) -> list[str | None]:
    """What goes on after each of these events."""
    found = list[str | None]()
    for one in events:
        told.update(one)
        found.append(told.phase[0] if told.phase else None)
    return found


def test_what_goes_on_beside_the_training_is_known() -> None:
    told = DriverState()
    connecting, probing = event("phase", "connecting", phase="connect"), event("phase", "probing", phase="probe")
    assert words_of(
        told, event("phase", "sweep x in y", phase="start"), event("phase", "searching x", phase="search"), connecting,
        probing, said("phase", phase="train", trial=1, until=5), event("phase", "removed", phase="room"),
    ) == ["starting", "starting", "connecting", "probing", None, None]  # fmt: skip
    assert words_of(
        told, event("stopping", "stopping after a checkpoint"), said("trial", trial=1), event("leaderboard", "1  0.4"),
        event("phase", "training the best values\nonce more", phase="final"),
    ) == ["stopping", "stopping", "ending", "training the best values"]  # fmt: skip


def test_a_row_has_the_newest_of_a_trial(going_on: SweepStatus) -> None:
    (running,) = going_on.running
    assert (running.number, running.step, running.loss, running.score) == (5, 40, 0.9, None)
    assert running.tokens == 40 * TOKENS / STEPS
    by_number = {trial.number: trial for trial in going_on.trials}
    assert (by_number[3].state, by_number[3].step, by_number[3].scored_step) == ("paused", 25, 25)
    assert by_number[4].reason == "its loss was nan after step 3"
    assert going_on.best == by_number[2] and counts_of(going_on.trials) == {
        "running": 1,
        "paused": 1,
        "finished": 2,
        "failed": 1,
    }
    assert going_on.tokens == 50 * (100 + 100 + 25 + 40 + 3)


def test_the_best_so_far_need_not_be_finished_and_a_failed_trial_is_never_the_best(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    failed = ledger.add({"learning_rate": 1e-2, "warmup_ratio": 0.1})
    ledger.answered(failed, Answer(status="failed", reason="out of memory"))
    assert status_with(ledger, heard()).best is None
    first = answered(ledger, 0.7, status="paused", step=25)
    answered(ledger, 0.8, status="paused", step=25)
    best = status_with(ledger, heard(first)).best
    assert best is not None and (best.number, best.state) == (first, "running")


def test_the_table_reads_well_on_a_wide_terminal(going_on: SweepStatus) -> None:
    assert texts(going_on, 120) == [
        "       learning  warmup  held-out  training",
        "trial      rate   ratio      loss      loss     step  tokens  state",
        "    2   1.0e-04     0.1    0.4312    0.5312  100/100      5k  finished",
        "    1   1.0e-04     0.1    0.5000    0.6000  100/100      5k  finished",
        "    3   1.0e-04     0.1    0.7000    0.8000   25/100   1.25k  paused",
        "    4      0.01     0.1         -         -    3/100     150  failed: its loss was nan after step 3",
        "    5   3.2e-04  0.0512         -    0.9000   40/100      2k  running",
        "best so far: trial 2, loss 0.4312 after step 100 of 100 (learning_rate 1.0e-04, warmup_ratio 0.1)",
        "5 trials: 1 running, 1 paused, 2 finished, 1 failed; 13,400 tokens, 2.7 runs; 5 of 16 trials begun",
    ]
    kinds = [kind for _, kind in screen(going_on, 120, 40)]
    assert kinds == ["head", "head", "best", "other", "other", "failed", "running", "note", "note"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(going_on: SweepStatus, width: int) -> None:
    lines = texts(going_on, width)
    assert max(map(len, lines)) <= width
    assert any(line.split()[0] == "5" and "running" in line for line in lines)
    assert ("tokens" in "".join(lines[:2])) is (width >= 80)


def test_a_narrow_terminal_shows_fewer_columns_of_many_values(tmp_path: Path) -> None:
    names = ("learning_rate", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm")
    space = {name: {"min": 0.1, "max": 0.2} for name in names}
    ledger = ledger_of(tmp_path, algorithm="random", space=space)
    ledger.add(dict.fromkeys(names, 0.123456))
    status = status_with(ledger, heard(1), {1: record(1)})
    narrow, wide = texts(status, 60), texts(status, 140)
    assert "tokens" in wide[2] and "norm" in wide[2] and wide[3].count("0.123") == 6
    assert "tokens" not in narrow[1] and "norm" not in narrow[1] and "running" in narrow[2]


def test_of_many_trials_the_running_and_the_best_ones_are_shown(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    for number in range(40):
        answered(ledger, 1 + (number * 7 % 40) / 100, status="paused", step=25)
    for _ in range(3):
        ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    status = status_with(ledger, heard(41, 42, 43))
    shown = shown_trials(status, MOST_ROWS)
    assert [trial.number for trial in shown[-3:]] == [41, 42, 43] and len(shown) == MOST_ROWS
    best = sorted((trial for trial in status.trials if trial.score), key=lambda trial: trial.score or math.inf)
    assert list(shown[:-3]) == best[: MOST_ROWS - 3]
    lines = texts(status, 100, 60)
    assert lines[2 + MOST_ROWS] == "not shown: 23 paused" and lines[2].split()[0] == str(best[0].number)
    low = texts(status, 100, 15)
    assert len(low) == 15 and low[-3] == "not shown: 33 paused" and "43 trials: 3 running, 40 paused" in low[-1]
    assert len(texts(status, 100, 1)) == 2 + FEWEST_ROWS + 3


def test_before_the_first_trial_there_is_no_table(tmp_path: Path) -> None:
    assert screen(status_with(ledger_of(tmp_path), heard()), 100, 40) == []


def test_the_time_to_go_is_the_driver_s_estimate_less_the_steps_since(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    answered(ledger, 0.5)
    ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    told = heard(2, progress={"step": 100, "total_steps": 800, "remaining_s": 1400.0})
    status = status_with(ledger, told, {2: record(50)}, at_s=200.0)
    assert status.remaining_s == pytest.approx(1300.0)
    assert format_elapsed(status) == "3m20s passed, about 21m40s to go"


def test_before_the_first_answer_it_comes_from_the_step_times(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    for _ in range(2):
        ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    assert status_with(ledger, heard(1, 2)).remaining_s is None
    assert status_with(ledger, heard(1, 2), {1: record(10), 2: record(30)}).remaining_s == pytest.approx(760.0)
    assert status_with(ledger, heard(1, planned_steps=None), {1: record(10)}).remaining_s is None


def test_a_bound_in_minutes_bounds_the_time_to_go(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, budget={"minutes": 10, "gpu_hours": 2, "tokens": 20_000, "trials": 4})
    ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    status = status_with(ledger, heard(1), {1: record(10)})
    assert status.remaining_s == pytest.approx(510.0)
    assert format_budget(status) == [
        "500 of 20,000 tokens, 0.1 runs", "1 of 4 trials begun", "0.025 of 2 GPU-hours", "1.5 of 10 minutes"
    ]  # fmt: skip


def test_the_time_of_earlier_drivers_counts_and_that_of_a_dead_one_ends_with_its_last_answer(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    answered(ledger, 0.5)  # driver 01, after 60 seconds
    told = heard()
    assert status_with(ledger, told, at_s=90.0).used_s == 90.0
    told.update(said("phase", 1000.0, phase="start"))
    told.update(said("phase", 1000.0, phase="workers", driver="02"))
    assert status_with(ledger, told, at_s=1030.0).used_s == 90.0
    dead = status_with(ledger, DriverState(), at_s=5000.0)
    assert (dead.used_s, dead.remaining_s) == (60.0, None)


def test_what_is_read_from_the_directory_follows_the_driver(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    watched = Trials(ledger.sweep, ledger.root)
    ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    metrics = JournalWriter(ledger.trials[1].paths.metrics, "rank-0")
    for step in (1, 2):
        metrics.append(record(step, 1.5 / step))
    metrics.close()
    (running,) = read_status(watched, heard(1), after(5)).running
    assert (running.step, running.loss, running.total_steps) == (2, 0.75, STEPS)
    answer = Answer(status="finished", step=STEPS, tokens=10, metrics={"eval_loss": 0.3})
    ledger.answered(ledger.trials[1], answer)
    status = read_status(watched, heard(1), after(6))  # the event comes after the record
    assert counts_of(status.trials) == {"finished": 1} and status.best is not None and status.tokens == 10
    ledger.close()


def test_a_larger_budget_is_seen_once_the_driver_has_taken_it_over(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, budget={"trials": 4})
    write_bytes(JobPaths(ledger.root).spec, dump_spec(ledger.sweep))
    watched, told = Trials(ledger.sweep, ledger.root), heard()
    larger = ledger.sweep.model_copy(update={"budget": Budget(trials=9)})
    write_bytes(JobPaths(ledger.root).spec, dump_spec(larger))
    assert read_status(watched, told, after(5)).sweep.budget.trials == 4
    told.update(said("phase", phase="changed"))
    assert read_status(watched, told, after(6)).sweep.budget.trials == 9 and not told.is_changed


def test_the_page_of_the_status(going_on: SweepStatus) -> None:
    run = RunSummary(
        name="found-1", root="/runs/found-1", status="running", started_at=None, silent_s=1.0, step=0, metrics={},
        reason=None,
    )  # fmt: skip
    assert status_page(run, going_on).splitlines() == [
        "sweep        found-1",
        "status       running",
        "trials       5: 1 running, 1 paused, 2 finished, 1 failed",
        "running      trial 5, step 40 of 100, training loss 0.9000 (learning_rate 3.2e-04, warmup_ratio 0.0512)",
        "best so far  trial 2, loss 0.4312 after step 100 of 100 (learning_rate 1.0e-04, warmup_ratio 0.1)",
        "used         13,400 tokens, 2.7 runs",
        "             5 of 16 trials begun",
        "time         1m30s passed, about 17m44s to go",
        "sweep at     /runs/found-1",
    ]
    exporting = dataclasses.replace(going_on, phase=("exporting the model of trial 2", 12.0))
    assert "phase        exporting the model of trial 2 (12 s)" in status_page(run, exporting)
    lost = run.model_copy(update={"status": "lost", "silent_s": 720.0})
    assert "status       lost (12m00s silent)" in status_page(lost, going_on)
    again = "fleetune run --resume /runs/found-1"
    assert status_page(lost, going_on, again).endswith(f"resume       {again}")


def test_the_same_for_programs(going_on: SweepStatus) -> None:
    found = facts(going_on)
    assert found["trials"] == {"running": 1, "paused": 1, "finished": 2, "failed": 1}
    (running,) = found["running"]
    assert (running["trial"], running["step"], running["total_steps"], running["loss"]) == (5, 40, 100, 0.9)
    assert (found["best"]["trial"], found["best"]["eval_loss"], found["budget"]) == (2, 0.4312, {"trials": 16})
    assert found["remaining_s"] == going_on.remaining_s and found["used_s"] == 90.0


def test_the_command_reads_a_sweep_that_goes_on_and_one_that_has_ended(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, algorithm="random")
    paths = JobPaths(ledger.root)
    write_bytes(paths.spec, dump_spec(ledger.sweep))
    answered(ledger, 0.4312)
    ledger.add({"learning_rate": 3.16e-4, "warmup_ratio": 0.0512})
    ledger.close()
    events, metrics = JournalWriter(paths.events, "driver"), JournalWriter(ledger.trials[2].paths.metrics, "rank-0")
    events.append(event("phase", "sweep found-1", phase="start").model_dump(mode="json"))
    events.append(event("phase", "training", phase="train", trial=2, until=STEPS).model_dump(mode="json"))
    metrics.append(record(40))
    for journal in (events, metrics):
        journal.close()
    found = json.loads(call("sweep", "status", ledger.root, "--json"))
    assert (found["name"], found["status"], found["trials"]) == ("found-1", "running", {"running": 1, "finished": 1})
    assert found["running"][0]["step"] == 40 and found["best"]["trial"] == 1
    assert "running      trial 2, step 40 of 100, training loss 0.9000" in call("sweep", "status", ledger.root)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, ended_at=BEGAN))
    page = call("sweep", "status", ledger.root)
    assert "status       succeeded" in page and "1 waiting, 1 finished" in page and "training loss" not in page


def test_a_training_loss_that_is_no_number_is_null_for_programs(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, algorithm="random")
    write_bytes(JobPaths(ledger.root).spec, dump_spec(ledger.sweep))
    trial = ledger.add({"learning_rate": 3e-4, "warmup_ratio": 0.1})
    ledger.answered(trial, Answer(status="finished", step=STEPS, loss=math.nan, metrics={"eval_loss": 0.4}))
    ledger.close()
    assert math.isnan(Trials(ledger.sweep, ledger.root).trials[1].loss or 0.0)
    best = json.loads(call("sweep", "status", ledger.root, "--json"))["best"]
    assert (best["loss"], best["eval_loss"]) == (None, 0.4)


@pytest.mark.parametrize("name", ["spec.json", "new.html"])
def test_a_report_takes_the_place_of_no_file_of_the_sweep(tmp_path: Path, name: str) -> None:
    ledger = ledger_of(tmp_path)
    spec = dump_spec(ledger.sweep)
    write_bytes(JobPaths(ledger.root).spec, spec)
    result = CliRunner().invoke(cli.app, ["sweep", "report", ledger.root, "--html", f"{ledger.root}/{name}"])
    assert result.exit_code == 2 and "is in the directory of the sweep: give a file elsewhere" in result.stderr
    assert Path(JobPaths(ledger.root).spec).read_bytes() == spec and not Path(f"{ledger.root}/new.html").exists()


def call(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_no_command_to_resume_is_shown_for_a_sweep_that_would_fail_again(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    paths = JobPaths(ledger.root)
    write_bytes(paths.spec, dump_spec(ledger.sweep))

    def shown() -> str:
        return CliRunner().invoke(cli.app, ["sweep", "status", ledger.root]).stdout

    assert shown().splitlines()[-1].split() == ["resume", "fleetune", "run", "--resume", ledger.root]
    for bad_input, offered in ((False, True), (True, False)):
        write_outcome(paths, Outcome(status=Status.FAILED, reason="because", bad_input=bad_input, ended_at=after(0)))
        assert "failed" in shown() and ("fleetune run --resume" in shown()) is offered


def test_beyond_its_minutes_a_search_still_trains_to_the_next_score_and_a_whole_run(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, budget={"minutes": 1})
    ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    told = heard(1, planned_steps=None)
    status = status_with(ledger, told, {1: record(10)}, at_s=90.0)
    assert status.remaining_s == pytest.approx(2.0 * (25 - 10 + 10 + STEPS)), "with the cool-down"
    whole = ledger.add({"learning_rate": 6e-5, "warmup_ratio": 0.1}, without_rungs=True)
    answered_at_rung = Answer(status="paused", step=25, metrics={"eval_loss": 0.5})
    ledger.answered(ledger.trials[1], answered_at_rung)
    told = heard(whole.number, planned_steps=None)
    status = status_with(ledger, told, {whole.number: record(30)}, at_s=200.0)
    assert status.remaining_s == pytest.approx(2.0 * (STEPS - 30))
