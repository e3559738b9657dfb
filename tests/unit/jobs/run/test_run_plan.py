"""A plan beside the steps that followed it."""

from __future__ import annotations

import pathlib

import pytest

from cluster.errors import StorageError
from jobs.run.paths import JobPaths
from jobs.run.run_plan import RunPlan, check_of, read_plan, write_plan

PLAN = RunPlan(
    machines="8xH100-80",
    precision="bf16",
    parameters=10,
    chosen={"zero": {"stage": 2}},
    memory={"parameters": 20},
    total_bytes=1000,
    room_bytes=2000,
    step_s=2.0,
    tokens_per_s=5.0,
)


def steps(*seconds: float) -> list[dict[str, float]]:
    return [{"step": n, "step_time_s": s, "max_memory_bytes": 900 + n} for n, s in enumerate(seconds, 1)]


def test_the_first_step_is_left_out_and_the_later_ones_are_their_mean() -> None:
    """Of the second and third step, the longer one may have been held up."""
    check = check_of(PLAN, steps(9.0, 1.0, 2.5, 1.3, 1.2, 1.4))
    assert (check.predicted_step_s, check.first_steps_s) == (2.0, 1.0)
    assert check.measured_step_s == pytest.approx(1.3)
    assert (check.predicted_bytes, check.measured_bytes) == (1000, 906)


def test_first_steps_with_few_tokens_predict_those_with_more() -> None:
    records = steps(9.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    for record, tokens in zip(records, (100, 50, 50, 150, 150, 150), strict=True):
        record["computed_tokens"] = tokens
    check = check_of(PLAN, records)
    assert check.first_steps_s is not None and 1.2 < check.first_steps_s < 2.2 and check.measured_step_s == 2.0


@pytest.mark.parametrize(("count", "first", "measured"), [(0, None, None), (2, None, None), (3, 1.0, None)])
def test_too_few_steps_measure_nothing(count: int, first: float | None, measured: float | None) -> None:
    check = check_of(PLAN, steps(*[1.0] * count))
    assert (check.first_steps_s, check.measured_step_s) == (first, measured)


def test_it_is_read_as_it_was_written_and_not_from_a_newer_release(tmp_path: pathlib.Path) -> None:
    paths = JobPaths(str(tmp_path))
    assert read_plan(paths) is None
    write_plan(paths, PLAN)
    assert read_plan(paths) == PLAN
    write_plan(paths, PLAN.model_copy(update={"version": 3}))
    with pytest.raises(StorageError, match="newer release"):
        read_plan(paths)


def test_the_pace_is_known_from_later_steps_else_from_the_first_ones_and_only_for_the_same_accelerator() -> None:
    later, first = check_of(PLAN, steps(9.0, 1.0, 1.0, 3.0, 3.0)), check_of(PLAN, steps(9.0, 1.0, 1.0))
    assert (later.pace_on("H100-80"), first.pace_on("H100-80")) == (1.5, 0.5)
    assert later.pace_on("A100-80") is None and check_of(PLAN, steps(9.0)).pace_on("H100-80") is None
    bound = PLAN.model_copy(update={"is_bound": True, "step_s": None})
    assert check_of(bound, steps(9.0, 1.0, 1.0, 3.0)).pace_on("H100-80") is None
