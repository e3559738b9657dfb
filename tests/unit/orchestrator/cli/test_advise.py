"""`fleetune advise`: the learning rates beside the methods, and mistakes that are found before data is prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.search.rules.prior import rate_by_size
from jobs.spec.finetune import Spec
from orchestrator.cli.app import app
from orchestrator.cli.commands.advise import rate_for_full


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"train": {"learning_rate": 3e-5}}, 3e-5),
        ({"method": "lora", "train": {"learning_rate": 3e-4}}, 3e-5),
        ({"method": "lora"}, rate_by_size(64)),  # the default is a rate for full fine-tuning
        ({"method": "prompt", "train": {"learning_rate": 0.02}}, rate_by_size(64)),  # a prompt's rate says nothing
    ],
)
def test_the_rate_for_full_fine_tuning_fits_the_method_of_the_spec(
    tmp_path: Path, fields: dict[str, Any], rate: float
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    model = {"path": str(tmp_path), "task": "causal-lm"}
    spec = Spec.model_validate({"model": model, "data": {"train": "rows.jsonl", "format": "text"}, **fields})
    assert rate_for_full(spec) == pytest.approx(rate)


def test_machines_that_are_not_known_are_reported_before_the_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: {path: m, task: causal-lm}\ndata: {train: none.jsonl, format: text}\n")
    result = CliRunner().invoke(app, ["advise", str(tmp_path / "job.yaml")])
    assert result.exit_code == 2 and "the type of the GPUs is not known: give --on" in result.output
