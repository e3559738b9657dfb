"""How long a run is, and how much of it warms up."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import SpecError
from jobs.planning import total_rows, total_steps, warmup_steps
from jobs.spec.finetune import Spec, Train


def spec(**train: Any) -> Spec:
    values = {"model": {"path": "/m", "task": "causal-lm"}, "data": {"train": "/d", "format": "text"}, "train": train}
    return Spec.model_validate(values)


@pytest.mark.parametrize(
    ("train", "rows", "expected"),
    [
        ({"max_steps": 7}, 1_000_000, 7),
        ({}, 100, 30),
        ({"num_train_epochs": 1.0}, 101, 11),
        ({"num_train_epochs": 0.5}, 100, 5),
        ({"num_train_epochs": 0.1}, 300, 3),  # 0.1 * 300 / 10 is a little more than 3 in floats
        ({"num_train_epochs": 1e-6}, 100, 1),
    ],
)
def test_steps_of_a_run(train: dict[str, Any], rows: int, expected: int) -> None:
    assert total_steps(spec(**train), rows, 10) == expected


@settings(deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 4096), st.integers(1, 20))
def test_whole_epochs_show_every_row_that_often(rows: int, per_step: int, epochs: int) -> None:
    steps = total_steps(spec(num_train_epochs=epochs), rows, per_step)
    assert (steps - 1) * per_step < epochs * rows <= steps * per_step


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, 0),
        ({"warmup_ratio": 0.1}, 10),
        ({"warmup_ratio": 0.101}, 11),
        ({"warmup_ratio": 1.0}, 100),
        ({"warmup_steps": 0.05}, 5),
        ({"warmup_steps": 1}, 1),
        ({"warmup_steps": 100}, 100),
    ],
)
def test_warmup_of_a_hundred_steps(train: dict[str, Any], expected: int) -> None:
    assert warmup_steps(Train(**train), 100) == expected


def test_warmup_longer_than_the_run_is_refused_with_the_numbers() -> None:
    with pytest.raises(SpecError, match=r"warmup_steps \(101\) is longer than the run of 100 steps"):
        warmup_steps(Train(warmup_steps=101), 100)


@given(st.floats(0.0, 1.0), st.integers(1, 10**6))
def test_share_is_rounded_up_as_transformers_rounds_it_and_stays_in_the_run(ratio: float, total: int) -> None:
    assert warmup_steps(Train(warmup_ratio=ratio), total) == math.ceil(total * ratio) <= total


@given(epochs=st.floats(0.01, 5.0), num_rows=st.integers(1, 5000), rows_per_step=st.integers(1, 300))
def test_no_step_of_a_run_is_without_rows(epochs: float, num_rows: int, rows_per_step: int) -> None:
    job = spec(num_train_epochs=epochs)
    steps, rows = total_steps(job, num_rows, rows_per_step), total_rows(job, num_rows, rows_per_step)
    assert (steps - 1) * rows_per_step < rows <= steps * rows_per_step
