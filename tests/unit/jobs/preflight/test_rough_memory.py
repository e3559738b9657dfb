"""The rough bound of memory is above what a plan finds, and gives up where a configuration does not tell."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.planning.memory import COPIED_BY_TRIALS
from jobs.preflight.run_plan import rough_bytes
from jobs.spec.finetune import Spec

# MiniLM with 8 rows of 128 tokens takes 1.32 GiB of a worker, and 0.93 GiB without its program; see bench/RESULTS.md.
MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def spec(task: str = "sequence-classification", rows: int = 8) -> Spec:
    values: dict[str, Any] = {
        "model": {"path": "m", "task": task, **({"num_labels": 2} if task != "causal-lm" else {})},
        "data": {"train": "t", "format": "text" if task == "causal-lm" else "classification", "seq_len": 128},
        "train": {"per_device_train_batch_size": rows},
    }
    return Spec.model_validate(values)


def test_it_is_above_what_a_job_takes_and_grows_with_rows_and_tokens() -> None:
    bound = rough_bytes(spec(), MINILM, 91_000_000, 128)
    assert bound is not None and 0.93 * 2**30 < bound < 4 * 2**30
    for larger in (
        rough_bytes(spec(rows=64), MINILM, 91_000_000, 128),
        rough_bytes(spec(), MINILM, 91_000_000, 512),
        rough_bytes(spec(), MINILM, 91_000_000, 128, COPIED_BY_TRIALS),
    ):
        assert larger is not None and larger > bound


def test_logits_of_a_language_model_count() -> None:
    with_head = rough_bytes(spec("causal-lm"), MINILM | {"vocab_size": 150_000}, 91_000_000, 128)
    without = rough_bytes(spec("causal-lm"), MINILM, 91_000_000, 128)
    assert with_head is not None and without is not None and with_head - without >= 8 * 128 * 150_000 * 4 * 4


def test_logits_of_an_evaluation_count() -> None:
    config = MINILM | {"vocab_size": 150_000}
    one_row = spec("causal-lm", rows=1)
    scored = one_row.model_copy(update={"data": one_row.data.model_copy(update={"eval_fraction": 0.1})})
    with_evaluation, without = (rough_bytes(one, config, 91_000_000, 128) for one in (scored, one_row))
    assert with_evaluation is not None and without is not None
    assert with_evaluation - without == 3 * 128 * 150_000 * 4  # 2**26 logits have three whole rows


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "num_attention_heads"])
def test_what_is_not_known_is_not_bounded(missing: str) -> None:
    assert rough_bytes(spec(), {key: value for key, value in MINILM.items() if key != missing}, 91_000_000, 128) is None
    assert rough_bytes(spec(), MINILM, 0, 128) is None


def test_the_text_model_of_a_composite_configuration_is_read() -> None:
    assert rough_bytes(spec(), {"text_config": MINILM}, 91_000_000, 128) == rough_bytes(spec(), MINILM, 91_000_000, 128)
