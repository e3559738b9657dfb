"""What the whole budget of a sweep takes, by the plan of one gang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from jobs.planning.accelerators import gang_machines, machines_of
from jobs.search.planned import Cost, cost_of
from jobs.search.rules.prior import with_prior
from tests.unit.jobs.search.rules.test_auto import RATE, sweep_with


def cost(folder: Path, gangs: int = 4, **fields: Any) -> Cost:
    """Runs of 100 steps of 36 s and 1,000 tokens, on gangs of 2 GPUs."""
    sweep, _ = with_prior(sweep_with(folder, prior={RATE: 1e-4}, **fields))
    return cost_of(sweep, 100, gangs, 2, 36.0, 100_000.0)


def test_auto_takes_its_rates_with_cool_downs_a_whole_run_and_the_probe(tmp_path: Path) -> None:
    found = cost(tmp_path)
    assert found.steps == round(6 * (25 + 10) + 100 + 1 + 8 * 2 / 3)
    assert found.tokens == pytest.approx(1000 * found.steps, rel=0.01)
    assert found.device_hours == pytest.approx(2 * found.steps / 100, rel=0.01)
    rounds = 2 * 35 + 100 + 1 + 8 * 2 / 3  # six rates on four gangs, the whole run and the probe on one
    assert found.gangs == 4 and found.least_hours == pytest.approx(rounds / 100)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"trials": 7}, 700),
        ({"runs": 2.5}, 300),  # a trial that has begun is trained to its end
        ({"tokens": 300_000}, 300),
        ({"gpu_hours": 5.0}, 400),  # of four gangs, which begin at once
        ({"minutes": 60.0}, 400),  # of four gangs
        ({"trials": 7, "minutes": 60.0}, 400),
    ],
)
def test_each_kind_of_budget(tmp_path: Path, budget: dict[str, Any], steps: int) -> None:
    assert cost(tmp_path, algorithm="random", budget=budget, num_gangs=4).steps == steps


def test_repeats_are_beyond_a_budget_in_trials_and_gangs_are_bounded(tmp_path: Path) -> None:
    found = cost(tmp_path, gangs=8, algorithm="random", budget={"trials": 3}, seeds=3)
    assert (found.steps, found.gangs) == (300 + 2 * 2 * 100, 3)
    one_value: dict[str, Any] = {"algorithm": "grid", "space": {RATE: [1e-4]}}
    one_trial: dict[str, Any] = {"algorithm": "random", "budget": {"trials": 1}}
    for single in (one_trial, one_value):
        assert cost(tmp_path, seeds=3, **single).steps == 100 + 2 * 100, "a single trial is the only finalist"


def test_gangs_on_machines() -> None:
    gang, count = gang_machines(machines_of("2x8xH100-80"), 2)
    assert (str(gang), count) == ("2xH100-80", 8)
    assert gang.host_memory == machines_of("8xH100-80").host_memory
    assert gang_machines(machines_of("2x8xH100-80"), 3)[1] == 4
    gang, count = gang_machines(machines_of("4x8xH100-80"), 16)
    assert (str(gang), count) == ("2x8xH100-80", 2)
    for workers in (12, 64):
        with pytest.raises(InputError, match=f"a gang of the sweep has {workers} workers"):
            gang_machines(machines_of("4x8xH100-80"), workers)


@pytest.mark.parametrize(
    ("fields", "gangs", "hours", "limit"),
    [
        ({"budget": {"minutes": 30}}, 1, 0.35 + 1 + 0.06, 0.5),  # one rate and one whole run
        ({"budget": {"minutes": 30}}, 4, 0.35 + 1 + 0.06, 0.5),
        ({"budget": {"minutes": 300}}, 1, 8 * 0.35 + 3 + 0.06, 5.0),
        ({"budget": {"minutes": 300}, "seeds": 2}, 1, 5 * 0.35 + 2 + 0.06, 5.0),
        ({"algorithm": "random", "budget": {"minutes": 90}}, 1, 2.0, 1.5),
        ({"algorithm": "random", "budget": {"gpu_hours": 5.0}, "num_gangs": 4}, 4, 1.0, 0.625),
        ({"algorithm": "random", "budget": {"trials": 7}}, 4, 2.0, None),
    ],
)
def test_the_time_is_until_the_last_trial_ends(
    tmp_path: Path, fields: dict[str, Any], gangs: int, hours: float, limit: float | None
) -> None:
    found = cost(tmp_path, gangs=gangs, **fields)
    assert found.least_hours == pytest.approx(hours, abs=0.01) and found.limit_hours == limit
