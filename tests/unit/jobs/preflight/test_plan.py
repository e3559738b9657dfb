"""What a plan refuses before it traces a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, SpecError
from jobs.planning.accelerators import machines_of
from jobs.planning.strategy import Strategy
from jobs.preflight.plan import _note_of_precision, _resources_for, plan_job
from jobs.preflight.plan_text import format_strategy
from jobs.spec.finetune import Spec


def test_rows_that_are_longer_than_the_model_s_positions_are_not_planned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 256}))
    model = {"path": str(tmp_path), "task": "causal-lm"}
    data = {"train": "rows.jsonl", "format": "text", "seq_len": 300}
    spec = Spec.model_validate({"model": model, "data": data, "train": {"max_steps": 5}})
    with pytest.raises(DataError, match=r"256 positions, but data\.seq_len is 300"):
        plan_job(spec, machines_of("1xH100-80"))


def test_more_gpus_than_rows_of_a_step_are_not_planned(tmp_path: Path) -> None:
    model = {"path": str(tmp_path), "task": "causal-lm"}
    data = {"train": "rows.jsonl", "format": "text", "seq_len": 300}
    spec = Spec.model_validate({"model": model, "data": data, "train": {"max_steps": 5, "global_batch_size": 4}})
    with pytest.raises(SpecError, match=r"fewer rows than 8xH100-80 has GPUs.* or plan for 4 GPUs or fewer"):
        plan_job(spec, machines_of("8xH100-80"))


def spec_with(**sections: Any) -> Spec:
    base = {"model": {"path": "m", "task": "causal-lm"}, "data": {"train": "rows.jsonl", "format": "text"}}
    return Spec.model_validate(base | {"train": {"max_steps": 5}} | sections)


@pytest.mark.parametrize(
    ("given", "on", "expected"),
    [
        ({"num_workers": 8}, "8xH100-80", {}),
        ({"num_workers": 2}, "8xH100-80", {"num_workers": 8}),
        ({"num_workers": 8, "gpus_per_worker": 0}, "8xH100-80", {"gpus_per_worker": 1}),
        ({"num_workers": 8, "accelerator_type": "A100"}, "8xH100-80", {"accelerator_type": "H100"}),
        ({"num_workers": 8, "accelerator_type": "A100"}, "8xA100-40", {}),
        ({"num_workers": 4, "min_workers": 2}, "3xH100-80", {}),
        ({"num_workers": 4, "min_workers": 2}, "8xH100-80", {"num_workers": 8}),
        ({"num_workers": 4, "min_workers": 2}, "1xH200-141", {"min_workers": 1}),
    ],
)
def test_a_plan_for_other_machines_names_the_resources_to_write(
    given: dict[str, Any], on: str, expected: dict[str, Any]
) -> None:
    assert _resources_for(spec_with(resources=given), machines_of(on)) == expected


def test_gpus_without_bf16_have_a_note_unless_the_precision_is_written() -> None:
    written_out = spec_with(train={"max_steps": 5, "fp16": False})  # as in the spec that a run or a queue stores
    for spec in (spec_with(), written_out):
        note = _note_of_precision(spec, machines_of("8xV100-32"))
        assert note is not None and "V100-32 has no bf16; train.fp16: true" in note
    assert _note_of_precision(spec_with(), machines_of("8xH100-80")) is None
    for precision in ({"fp16": True}, {"bf16": False}):
        assert _note_of_precision(spec_with(train={"max_steps": 5, **precision}), machines_of("8xV100-32")) is None


@pytest.mark.parametrize(
    ("optimizer", "parameters", "said"),
    [
        (False, False, "ZeRO 3, micro-batch 2"),
        (True, False, "ZeRO 3, optimizer on the host, micro-batch 2"),
        (False, True, "ZeRO 3, parameters on the host, micro-batch 2"),
        (True, True, "ZeRO 3, optimizer and parameters on the host, micro-batch 2"),
    ],
)
def test_a_strategy_names_what_is_on_the_host(optimizer: bool, parameters: bool, said: str) -> None:
    strategy = Strategy(stage=3, offload_optimizer=optimizer, offload_param=parameters, per_device_train_batch_size=2)
    assert format_strategy(strategy) == said
