"""Numbers that drivers report, within their bounds before anybody weighs jobs by them."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from jobs.drivers.link.messages import MOST_STEPS, Beat
from orchestrator.queue.records import Measured
from orchestrator.queue.states import State
from orchestrator.service.drivers import LARGEST_METRIC, LONGEST_S, RESTART_S, plausible
from tests.support.queuejobs import NOW_S, job

RUNS = job("runs", State.RUNNING)  # for an hour


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (30.0, 30.0),
        (0.0, 0.0),
        (-5.0, 0.0),
        (1e308, 3600.0 + RESTART_S),
        (math.inf, None),
        (-math.inf, None),
        (math.nan, None),
        (None, None),
    ],
)
def test_an_interruption_costs_no_more_than_the_attempt_has_worked(said: float | None, kept: float | None) -> None:
    assert plausible(Measured("runs", 1, interruption_cost_s=said), RUNS, NOW_S).interruption_cost_s == kept


@pytest.mark.parametrize(("said", "kept"), [(60.0, 60.0), (-1.0, 0.0), (1e308, LONGEST_S), (math.nan, None)])
def test_no_run_takes_longer_than_ten_years(said: float, kept: float | None) -> None:
    assert plausible(Measured("runs", 1, remaining_s=said), RUNS, NOW_S).remaining_s == kept


def test_steps_are_whole_and_bounded() -> None:
    found = plausible(Measured("runs", 1, step=-3, total_steps=10**30), RUNS, NOW_S)
    assert (found.step, found.total_steps) == (0, MOST_STEPS)


def test_metrics_are_finite_and_bounded_and_others_say_nothing() -> None:
    wild = {"loss": math.nan, "norm": math.inf, "low": -1e308, "high": 1e300, "fine": 1.5}
    found = plausible(Measured("runs", 1, metrics=wild), RUNS, NOW_S).metrics
    assert found == {"low": -LARGEST_METRIC, "high": LARGEST_METRIC, "fine": 1.5}
    assert plausible(Measured("runs", 1), RUNS, NOW_S) == Measured("runs", 1)


@pytest.mark.parametrize("value", ["much", [], {}, 10**400])
def test_what_is_no_number_is_no_message(value: object) -> None:
    with pytest.raises(ValidationError):
        Beat.model_validate({"job_id": "runs", "attempt": 1, "remaining_s": value})
