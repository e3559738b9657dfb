"""What is known of trials is what was written of them, whoever reads it, and whatever a trial's end was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.run.outcome import Status, read_outcome
from jobs.search.ledger import Ledger, Unanswered
from jobs.search.report.trial_text import leaderboard, leaderboard_facts, trial_line
from jobs.search.trials import Trials
from jobs.spec.load import load_sweep
from jobs.spec.sweep import SweepSpec
from jobs.training.mailbox import Answer, GangTask, Mailbox, MessageFolder

STEPS = 10


@pytest.fixture
def sweep(tmp_path: Path) -> SweepSpec:
    base = {
        "model": {"path": "./model", "task": "sequence-classification", "num_labels": 2},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.1},
        "eval": {"metrics": ["loss", "accuracy"]},
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"kind": "sweep", "name": "found", "base": base}))
    loaded = load_sweep(str(tmp_path / "sweep.json"))
    assert loaded is not None
    return loaded


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "found-1")


def ledger_of(sweep: SweepSpec, root: str) -> Ledger:
    return Ledger(sweep, root, lambda spec: STEPS, 100.0)


def add(ledger: Ledger, rate: float) -> Any:
    return ledger.add({"learning_rate": rate, "warmup_ratio": 0.1})


def scored(status: Any, step: int, loss: float) -> Answer:
    return Answer(status=status, step=step, total_steps=STEPS, tokens=100, metrics={"eval_loss": loss})


def test_the_next_driver_knows_what_the_last_one_knew(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep, root)
    first, second, third, fourth = (add(ledger, rate) for rate in (1e-5, 2e-5, 3e-5, 4e-5))
    ledger.answered(first, scored("paused", 5, 0.6))
    ledger.answered(first, scored("finished", STEPS, 0.4))
    ledger.answered(second, Answer(status="failed", reason="out of memory"))
    ledger.answered(third, scored("paused", 5, 0.7))
    ledger.stopped(third, "worse than the better half after step 5")
    ledger.began(fourth)
    ledger.close()
    for again in (Trials(sweep, root), ledger_of(sweep, root)):
        found = again.trials
        assert [trial.state for trial in found.values()] == ["finished", "failed", "stopped", "waiting"]
        assert found[1].scores == [(5, 0.6), (STEPS, 0.4)] and found[1].tokens == 200 and again.tokens == 300
        assert [trial.spec for trial in found.values()] == [one.spec for one in (first, second, third, fourth)]
        assert [trial.number for trial in again.ranked()] == [1, 3, 2, 4] and again.best is found[1]
        assert found[2].reason == "out of memory" and str(found[3].reason).startswith("worse")
    ended = [read_outcome(trial.paths) for trial in (first, second, third, fourth)]
    assert [one.status if one else None for one in ended] == [
        Status.SUCCEEDED, Status.FAILED, Status.INTERRUPTED, None,
    ]  # fmt: skip


def test_the_next_driver_tries_a_trial_again_whose_gangs_were_lost(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep, root)
    begun, lost, failed = (add(ledger, rate) for rate in (1e-5, 2e-5, 3e-5))
    ledger.trained(begun, Unanswered(4, 40, 2.0))
    for trial, is_lost in ((begun, True), (lost, True), (failed, False)):
        ledger.answered(trial, Answer(status="failed", reason="its gang was lost"), lost=is_lost)
    ledger.close()
    shown = Trials(sweep, root)
    assert [(trial.state, trial.lost) for trial in shown.trials.values()] == [
        ("failed", True), ("failed", True), ("failed", False),
    ]  # fmt: skip
    again = ledger_of(sweep, root)
    assert [trial.state for trial in again.trials.values()] == ["paused", "waiting", "failed"]
    assert (again.trials[1].step, again.trials[1].reason) == (4, None)
    again.answered(again.trials[1], scored("finished", STEPS, 0.4))
    again.close()
    shown.catch_up()
    assert [trial.state for trial in shown.trials.values()] == ["finished", "waiting", "failed"]


def test_the_next_driver_tries_a_trial_again_whose_metric_failed(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep, root)
    for rate, when in ((1e-5, "later"), (2e-5, None)):
        ledger.answered(add(ledger, rate), Answer(status="failed", reason="it failed", metric_failed=when))
    ledger.close()
    assert [trial.metric_failed for trial in Trials(sweep, root).trials.values()] == [True, False]
    again = ledger_of(sweep, root)
    assert [(trial.state, trial.metric_failed) for trial in again.trials.values()] == [
        ("waiting", False), ("failed", False),
    ]  # fmt: skip
    again.close()


def test_what_a_killed_driver_has_used_is_counted(sweep: SweepSpec, root: str) -> None:
    """Also before its first answer, and before its first trial."""
    killed = ledger_of(sweep, root)
    killed.used(("01", 60.0, 120.0))
    trial = add(killed, 1e-5)
    killed.used(("01", 90.0, 180.0))
    killed.trained(trial, Unanswered(4, 40, 2.5))
    killed._journal.flush()
    second = ledger_of(sweep, root)
    assert (second.seconds, second.device_hours * 3600, second.tokens) == (90.0, 180.0, 40)
    second.answered(second.trials[1], scored("finished", STEPS, 0.4).model_copy(update={"tokens": 60}), ("02", 5, 10))
    for ledger in (killed, second):
        ledger.close()
    found = Trials(sweep, root)
    assert (found.seconds, found.device_hours * 3600, found.tokens) == (95.0, 190.0, 100)
    assert (found.trials[1].step, found.trials[1].seconds) == (STEPS, 2.5)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (scored("finished", STEPS, float("nan")), "eval_loss was nan after step 10"),
        (scored("finished", STEPS, float("inf")), "eval_loss was inf after step 10"),
        (
            Answer(status="finished", step=STEPS, metrics={"eval_f1": 1.0}),
            "the job reports no eval_loss; it reports eval_f1",
        ),
    ],
)
def test_without_a_finite_score_a_trial_has_failed(sweep: SweepSpec, root: str, answer: Answer, reason: str) -> None:
    ledger = ledger_of(sweep, root)
    good, bad = add(ledger, 1e-5), add(ledger, 2e-5)
    assert ledger.finite_score(bad) > 1e6, "while nothing is known"
    ledger.answered(good, scored("finished", STEPS, 0.4))
    ledger.answered(bad, answer)
    assert (bad.state, bad.reason) == ("failed", reason)
    outcome = read_outcome(bad.paths)
    assert outcome is not None and outcome.diverged == bad.diverged == reason.startswith("eval_loss was")
    assert ledger.finite_score(bad) == 0.4, "the worst score that there is: a finite one"
    assert ledger.best is good and Trials(sweep, root).trials[2].state == "failed"
    assert reason in trial_line(ledger, bad) and reason in leaderboard(ledger)


def test_a_reason_of_several_lines_takes_one_line_of_the_leaderboard(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep, root)
    bad = add(ledger, 1e-5)
    ledger.answered(bad, Answer(status="failed", reason="own:f failed: ValueError: rows\n  differ\n  in length"))
    assert leaderboard(ledger).splitlines()[1].endswith("own:f failed: ValueError: rows")
    assert len(leaderboard(ledger).splitlines()) == 2 and "\n" not in trial_line(ledger, bad)


def test_a_trial_that_was_saved_since_the_sweep_was_stopped_goes_on(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep, root)
    trial = add(ledger, 1e-5)
    ledger.answered(trial, Answer(status="stopped", step=3, tokens=30))
    again = Trials(sweep, root).trials[1]
    assert (again.state, again.step, again.scores, again.is_over) == ("paused", 3, [], False)


def test_the_greatest_is_best_where_the_metric_is_a_share(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep.model_copy(update={"metric": "accuracy"}), root)
    for rate, accuracy in ((1e-5, 0.7), (2e-5, 0.9)):
        ledger.answered(add(ledger, rate), Answer(status="finished", step=STEPS, metrics={"eval_accuracy": accuracy}))
    assert ledger.best is ledger.trials[2] and [one["trial"] for one in leaderboard_facts(ledger)] == [2, 1]


def test_what_is_half_written_is_no_message(tmp_path: Path) -> None:
    folder = MessageFolder(str(tmp_path), GangTask)
    folder.put("0002", GangTask(action="end"))
    folder.put("0001", GangTask(action="end"))
    (tmp_path / ".0003.json.x1y2.unfinished").write_text("")
    assert folder.names() == ["0001", "0002"] and folder.read("0001") == GangTask(action="end")


def test_who_waits_for_an_answer_may_give_up(tmp_path: Path) -> None:
    def look() -> None:
        raise RuntimeError("the gang is lost")

    with pytest.raises(RuntimeError, match="lost"):
        Mailbox(str(tmp_path)).answers.wait(1, look)


def test_whole_runs_without_a_comparison_take_nobodys_place_at_a_rung(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep.model_copy(update={"algorithm": "random", "scheduler": "halving"}), root)
    for rate in range(1, 9):
        ledger.answered(add(ledger, rate * 1e-5), scored("paused", 2, 0.1 * rate))
    assert ledger.going_on == [1, 2]
    ledger.answered(ledger.trials[1], scored("finished", STEPS, 0.05))
    whole_run = ledger.add({"learning_rate": 1e-5, "warmup_ratio": 0.2}, without_rungs=True)
    ledger.answered(whole_run, scored("finished", STEPS, 0.04))
    assert ledger.going_on == [2]


def test_no_two_finalists_have_the_same_values(sweep: SweepSpec, root: str) -> None:
    """A list of a few values may be drawn from more than once."""
    ledger = ledger_of(sweep.model_copy(update={"seeds": 3}), root)
    for rate in (1e-5, 2e-5, 1e-5, 3e-5):
        ledger.answered(add(ledger, rate), scored("finished", STEPS, 0.4 + rate))
    assert [trial.number for trial in ledger.finalists] == [1, 2]


def test_the_finalists_are_repeated_with_other_seeds_and_ranked_by_their_mean(sweep: SweepSpec, root: str) -> None:
    ledger = ledger_of(sweep.model_copy(update={"seeds": 3}), root)
    for rate, loss in ((1e-5, 0.50), (2e-5, 0.40), (3e-5, 0.45)):
        ledger.answered(add(ledger, rate), scored("finished", STEPS, loss))
    assert [trial.number for trial in ledger.finalists] == [2, 3]
    for loss in (0.60, 0.46, 0.62, 0.47):
        first = ledger.to_repeat()
        assert first is not None
        repeat = ledger.add(first.values, without_rungs=True, repeats=first.number)
        ledger.answered(repeat, scored("finished", STEPS, loss))
    assert ledger.to_repeat() is None
    assert [(trial.repeats, trial.spec.seed) for trial in ledger.trials.values()][3:] == [
        (2, 43), (3, 43), (2, 44), (3, 44),
    ]  # fmt: skip
    ledger.close()
    known = Trials(sweep.model_copy(update={"seeds": 3}), root)
    assert known.best is not None and known.best.number == 3  # 0.46 in the mean, where trial 2 has 0.54
    assert [trial.number for trial in known.ranked()] == [3, 5, 7, 2, 4, 6, 1]
    assert [trial.number for trial in known.searched] == [1, 2, 3] and known.to_repeat() is None
    best, second, *_ = leaderboard(known).splitlines()[1:]
    assert best.endswith("finished  mean of 3 seeds 0.4600, standard deviation 0.0100") and second.endswith(
        "seed 43 of trial 3"
    )
    assert leaderboard_facts(known)[0]["mean"] == pytest.approx(0.46)


def test_trials_of_unlike_lengths_are_compared_by_their_share_of_a_run(sweep: SweepSpec, root: str) -> None:
    """As a larger batch makes them."""
    lengths = iter([STEPS, STEPS, 2 * STEPS])
    ledger = Ledger(sweep, root, lambda spec: next(lengths), 100.0)
    short, long = add(ledger, 1e-5), add(ledger, 2e-5)
    ledger.answered(short, scored("finished", STEPS, 0.5))
    ledger.answered(long, scored("paused", STEPS, 0.3))
    ledger.close()
    known = Trials(sweep, root)
    assert known.trials[2].total_steps == 2 * STEPS
    assert [trial.number for trial in known.ranked()] == [1, 2]


def test_values_that_are_impossible_together_are_a_failed_trial_for_the_next_driver_too(
    sweep: SweepSpec, root: str
) -> None:
    def steps_of(spec: Any) -> int:
        if spec.train.learning_rate == 3e-5:
            raise SpecError("the sources are used up")
        return STEPS

    ledger = Ledger(sweep, root, steps_of, 100.0)
    assert add(ledger, 3e-5).impossible == "the sources are used up"
    assert add(ledger, 1e-5).impossible is None
    ledger.close()
    assert [trial.impossible for trial in Trials(sweep, root).trials.values()] == ["the sources are used up", None]


def test_a_trial_of_asha_that_pauses_between_two_rungs_goes_on(sweep: SweepSpec, root: str) -> None:
    """So that the search does not take it for ended."""
    ledger = ledger_of(sweep.model_copy(update={"scheduler": "asha"}), root)
    first, second = add(ledger, 1e-5), add(ledger, 2e-5)
    ledger.answered(first, scored("paused", 5, 0.5))
    ledger.answered(second, scored("paused", 5, 0.4))
    ledger.stopped(first, "not in the best quarter")
    assert ledger.going_on == [2]
