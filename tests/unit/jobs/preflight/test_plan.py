"""What a plan refuses before it traces a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import DataError, SpecError
from jobs.planning.accelerators import machines_of
from jobs.preflight.plan import plan_job
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
