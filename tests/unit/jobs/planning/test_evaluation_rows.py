"""An evaluation holds logits of a bounded number of targets, and a plan counts them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.planning.memory import ModelTrace, Moment, memory_of, rows_within
from jobs.planning.strategy import Strategy, strategy_of
from jobs.spec.finetune import Spec


@pytest.mark.parametrize(
    ("wanted", "trained", "logits_of_row", "rows"),
    [
        (8, 1, 256 * 262_144, 1),  # Gemma-3
        (8, 1, 256 * 49_152, 5),
        (8, 1, 64 * 512, 8),
        (8, 4, 8192 * 128_256, 4),  # as many as in training fit
        (2, 4, 8192 * 128_256, 2),
        (8, 1, 0, 8),
    ],
)
def test_rows_of_a_pass_are_bounded_by_their_logits(wanted: int, trained: int, logits_of_row: int, rows: int) -> None:
    assert rows_within(wanted, trained, logits_of_row) == rows


VOCABULARY, COLUMNS = 262_144, 64  # Gemma-3, short rows


def adapter() -> ModelTrace:
    """An adapter of 1000 elements on frozen weights, with one row of logits in fp32."""
    logits = 4 * VOCABULARY * COLUMNS
    moments = (
        Moment("logits", live_per_row=logits, peak_per_row=logits),
        Moment("loss", live_per_row=logits, peak_per_row=logits),
        Moment("gradient", (1,)),
        Moment("end"),
    )
    return ModelTrace(
        parameters=1_001_000, trained=1000, sizes=(1_000_000, 1000), trains=(False, True), decays=(True, True),
        moments=moments, moments_of_one_row=moments, buffer_bytes=0, logits_bytes_per_row=logits,
        logits_per_row=VOCABULARY * COLUMNS, vocabulary=VOCABULARY, loss_bytes_per_logit=8.0, flops_per_row=0,
        operations=1000, gradient_checkpointing=False, precision="fp32", seq_len=COLUMNS,
    )  # fmt: skip


def test_an_evaluation_of_more_rows_than_training_is_the_peak_if_its_logits_need_more() -> None:
    trace = adapter()
    one, four = (
        memory_of(trace, Strategy(per_device_train_batch_size=rows, per_device_eval_batch_size=8), 1, "cpu")
        for rows in (1, 4)
    )
    unscored = memory_of(trace, Strategy(per_device_train_batch_size=1), 1, "cpu")
    assert unscored.evaluation == 0 and unscored.logits >= trace.logits_bytes_per_row
    # 4 of the 8 rows have 2**26 logits, the most of one forward pass. In training, one row has a fourth of them.
    assert one.evaluation >= 4 * trace.logits_bytes_per_row and one.logits == one.activations == 0
    assert one.total > unscored.total + 2 * trace.logits_bytes_per_row
    assert four.evaluation == 0, "training has as many rows, and needs more"


def test_an_evaluation_keeps_the_weights_of_a_small_model_whole_and_training_those_that_it_uses_again() -> None:
    """Even with as many rows as training has: the backward pass does not need the frozen weight."""
    adapted = replace(adapter(), loss_bytes_per_logit=0.0)
    strategy = Strategy(per_device_eval_batch_size=1, param_persistence_threshold=0)
    far = replace(strategy, max_reuse_distance=2 * 1_001_000 - 1)
    kept, gathered = (memory_of(adapted, one, 2, "cpu") for one in (strategy, far))
    assert kept.evaluation == adapted.logits_bytes_per_row and kept.gathered_buckets == 4 * 1_001_000
    assert gathered.evaluation == 0 and gathered.gathered_buckets < 4 * 1_001_000


def test_the_states_of_full_fine_tuning_hide_a_small_evaluation() -> None:
    trace = replace(adapter(), trained=1_001_000_000, sizes=(1_000_000_000, 1_000_000), trains=(True, True))
    assert memory_of(trace, Strategy(per_device_eval_batch_size=8), 1, "cpu").evaluation == 0


def test_a_spec_without_held_out_samples_has_no_evaluation_to_plan() -> None:
    base: dict[str, Any] = {"model": {"path": "m", "task": "causal-lm"}, "data": {"train": "t", "format": "text"}}
    scored = {**base["data"], "eval_fraction": 0.1}
    assert strategy_of(Spec.model_validate(base)).per_device_eval_batch_size == 0
    assert strategy_of(Spec.model_validate(base | {"data": scored})).per_device_eval_batch_size == 8
