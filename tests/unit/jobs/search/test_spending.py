"""Repeats of finalists count in a budget of minutes or GPU-hours, and the search leaves room for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.search.ledger import Ledger
from jobs.search.rules.budget import checked_plan, next_kind
from jobs.search.spending import leaves_a_repeat, seconds_of_a_run, time_limits
from jobs.training.mailbox import Answer
from tests.unit.jobs.search.rules.test_auto import RATE, WARMUP, sweep_with

RUN_S = 60.0


def ledger_of(folder: Path, trials: int, **fields: Any) -> Ledger:
    """Finished trials of a random search, each of which took a minute on the gang."""
    fields = {"algorithm": "random", "budget": {"minutes": 10}, "seeds": 2, **fields}
    ledger = Ledger(sweep_with(folder, **fields), str(folder / "found"), lambda spec: 100, 1000.0)
    for number in range(trials):
        finish(ledger, ledger.add({RATE: 1e-4 * (1 + number), WARMUP: 0.06}))
    return ledger


def finish(ledger: Ledger, trial: Any) -> None:
    answer = Answer(status="finished", step=100, metrics={"eval_loss": 0.5}, seconds=RUN_S)
    ledger.answered(trial, answer)


def kind(ledger: Ledger, minutes: float, gangs: int = 1) -> str:
    """What may begin after these minutes of a search on gangs of one GPU."""
    spent = {"01": (minutes * 60, minutes * 60 * gangs)}
    used = max(one.share for one in time_limits(ledger, spent))
    to_repeat = ledger.to_repeat() is not None and leaves_a_repeat(ledger, spent)
    plan = checked_plan(ledger.sweep, 100, 1000.0, 0.0)
    return next_kind(ledger.searched, plan, used, bool(ledger.going_on), to_repeat)


def test_the_search_ends_when_only_the_time_of_the_repeats_is_left(tmp_path: Path) -> None:
    """Two repeats take two minutes on one gang and one on two, and a trial that begins just before takes another."""
    ledger = ledger_of(tmp_path, 8)
    assert seconds_of_a_run(ledger) == RUN_S
    assert kind(ledger, 6.9) == "compared" and kind(ledger, 7.1) == "repeat"
    assert kind(ledger, 7.9, gangs=2) == "compared" and kind(ledger, 8.1, gangs=2) == "repeat"


def test_a_single_trial_needs_time_for_its_own_repeats_only(tmp_path: Path) -> None:
    (limit,) = time_limits(ledger_of(tmp_path, 1, budget={"minutes": 10, "trials": 1}, seeds=3), {})
    assert limit.repeats == (2 + 1) * RUN_S, "two repeats, and a trial that still runs"


def test_a_repeat_that_has_begun_makes_no_room_for_trials(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 8)
    finish(ledger, ledger.add({RATE: 1e-4, WARMUP: 0.06}, without_rungs=True, repeats=1))
    assert kind(ledger, 8.9) == "repeat"


def test_a_repeat_that_would_end_too_late_is_left_out(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 8)
    assert kind(ledger, 9.1) == "done" and ledger.repeats_to_begin == 2
    assert kind(ledger, 8.5) == "repeat"


def test_many_seeds_leave_half_of_the_budget_to_the_search(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 4, seeds=50)
    assert kind(ledger, 4.9) == "compared" and kind(ledger, 5.1) == "repeat"


@pytest.mark.parametrize(("running", "then"), [(False, "repeat"), (True, "done")])
def test_gpu_hours_must_pay_for_the_repeats_that_run_too(tmp_path: Path, running: bool, then: str) -> None:
    """Of two gangs, one is free: a repeat takes one of the 1.5 GPU-minutes that are left."""
    ledger = ledger_of(tmp_path, 5, budget={"gpu_hours": 10 / 60}, seeds=4)
    if running:
        ledger.began(ledger.add({RATE: 1e-4, WARMUP: 0.06}, without_rungs=True, repeats=1))
    assert kind(ledger, 8.5 / 2, gangs=2) == then


def test_without_more_seeds_the_search_has_all_of_the_time(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 8, seeds=1)
    assert kind(ledger, 9.9) == "compared" and kind(ledger, 10.1) == "done"
