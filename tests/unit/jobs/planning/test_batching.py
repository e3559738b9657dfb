"""Micro-batch, accumulation, workers and global batch fit together, or the numbers are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import SpecError
from jobs.data.order.row_order import micro_batches
from jobs.planning import Batching, plan_batching
from jobs.spec.finetune import Spec


def spec(workers: int = 1, seq_len: int = 1024, **train: Any) -> Spec:
    return Spec.model_validate(
        {
            "model": {"path": "/m", "task": "causal-lm"},
            "data": {"train": "/d.jsonl", "format": "text", "seq_len": seq_len},
            "train": train,
            "resources": {"num_workers": workers},
        }
    )


def test_without_a_global_batch_rows_are_the_product() -> None:
    found = plan_batching(spec(3, per_device_train_batch_size=4, gradient_accumulation_steps=2))
    assert found == Batching(rows=24, per_device=4, accumulation=2, num_workers=3)


def test_accumulation_is_one_where_nothing_is_said() -> None:
    assert plan_batching(spec()) == Batching(1, 1, 1, 1)


def test_accumulation_is_derived_from_the_global_batch() -> None:
    found = plan_batching(spec(8, per_device_train_batch_size=4, global_batch_size=128))
    assert (found.accumulation, found.micro_batches, found.places) == (4, 32, 128)


def test_global_batch_in_tokens_is_rows_of_seq_len() -> None:
    assert plan_batching(spec(2, seq_len=512, global_batch_tokens=4100)).rows == 8


def test_batch_that_does_not_divide_is_fine() -> None:
    found = plan_batching(spec(3, per_device_train_batch_size=2, global_batch_size=10))
    assert (found.rows, found.accumulation, found.places) == (10, 2, 12)


def test_accumulation_that_agrees_with_the_global_batch_is_accepted() -> None:
    found = plan_batching(spec(3, per_device_train_batch_size=2, global_batch_size=10, gradient_accumulation_steps=2))
    assert (found.rows, found.accumulation, found.places) == (10, 2, 12)


def test_contradiction_names_all_numbers() -> None:
    with pytest.raises(SpecError) as caught:
        plan_batching(spec(8, per_device_train_batch_size=4, gradient_accumulation_steps=8, global_batch_size=128))
    assert str(caught.value) == (
        "per_device_train_batch_size (4) x gradient_accumulation_steps (8) x num_workers (8) = 256, "
        "but global_batch_size is 128: drop one of them"
    )


def test_contradiction_in_tokens_shows_the_division() -> None:
    with pytest.raises(SpecError, match=r"global_batch_tokens \(4096\) // data.seq_len \(1024\) is 4: drop"):
        plan_batching(spec(1, global_batch_tokens=4096, gradient_accumulation_steps=8))


@pytest.mark.parametrize("train", [{"global_batch_size": 3}, {"global_batch_tokens": 3072}])
def test_fewer_rows_than_workers_is_refused(train: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=r"is 3, fewer rows than num_workers \(4\)"):
        plan_batching(spec(4, **train))


def test_fewer_tokens_than_one_row_is_refused() -> None:
    with pytest.raises(SpecError, match=r"is 0, fewer rows.*Raise train\.global_batch_tokens to 1024 or more$"):
        plan_batching(spec(1, global_batch_tokens=1000))


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 4096))
def test_all_rows_have_a_place_and_no_pass_is_needless(workers: int, per_device: int, rows: int) -> None:
    given_spec = spec(workers, per_device_train_batch_size=per_device, global_batch_size=rows)
    if rows < workers:
        with pytest.raises(SpecError):
            plan_batching(given_spec)
        return
    found = plan_batching(given_spec)
    assert found.places - per_device * workers < rows <= found.places
    parts = micro_batches(np.arange(rows), per_device, found.accumulation, workers)
    assert found.most_rows == max(sum(map(len, worker)) for worker in parts) == sum(map(len, parts[0]))
