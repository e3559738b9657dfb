"""The parts of bench/simulate.py that need no process of their own, on a piece of a real trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import simulate as bench
from orchestrator.scheduling.forecast.expected_start import Expected
from orchestrator.simulate.trace import read_trace
from orchestrator.simulate.values import Setup

JOBS = read_trace(str(Path(__file__).parents[1] / "support" / "trace_extract.csv"), None)[:100]
CROWDED = Setup(nodes=2, jitter=1)


def test_forecasts_are_made_for_some_of_those_who_wait_and_compared_with_their_first_starts() -> None:
    found = bench.forecast(CROWDED, 5, JOBS)  # ends at once where asking has changed the simulation
    assert found["had_to_wait"] >= 5 * found["every"] / 2 and 3 <= found["made"] <= 10
    assert 0 <= found["none"] < found["made"] and found["mean_error_min"] >= 0 and 0 <= found["within_share"] <= 1


def test_errors_of_two_forecasts_one_of_which_names_no_start() -> None:
    said = {
        3: bench.Said(Expected(600.0, 300.0, 900.0), as_before_s=0.0, took_s=0.1),
        5: bench.Said(Expected(None, None, None), as_before_s=0.0, took_s=0.3),
    }
    found = bench.errors(said, {3: 780.0, 5: 60.0})
    assert [found["made"], found["none"], found["within_share"], found["took_s_max"]] == [2, 1, 1.0, 0.3]
    assert [found["mean_error_min"], found["mean_too_late_min"], found["as_before_mean_error_min"]] == [3.0, -3.0, 13.0]
    assert bench.errors({}, {})["mean_error_min"] is None


def test_runs_come_together_as_means_and_worst_cases_and_meet_targets_or_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "_JOBS", JOBS)
    runs = [bench.run(bench.Case(Setup(nodes=6, jitter=jitter))) for jitter in (1, 2)]
    found = bench.together(runs)
    assert found["jain"] == pytest.approx(min(one.jain for one in runs), abs=1e-5)
    assert found["mean_jct_h"] == pytest.approx(sum(one.mean_jct_s for one in runs) / 7200, abs=1e-5)
    judged = bench.against({"jain": 1.01, "mean_jct_h": 1e6}, found)
    assert judged == {"jain": {"target": 1.01, "met": False}, "mean_jct_h": {"target": 1e6, "met": True}}


def test_gangs_are_enlarged_up_to_the_cluster() -> None:
    assert {job.num_gpus for job in bench.enlarged(JOBS, 4, 16)} <= {4, 8, 16}
