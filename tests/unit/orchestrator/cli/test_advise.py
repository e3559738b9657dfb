"""`fleetune advise`: the learning rates beside the methods, and mistakes that are found before data is prepared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.advice.method_choice import FAR_LONGER, Method, Situation
from jobs.planning.strategies import JobPlan
from jobs.search.rules.prior import rate_by_size
from jobs.spec.finetune import Spec
from orchestrator.cli.app import app
from orchestrator.cli.commands.advise import rate_for_full, situation_of
from tests.unit.jobs.planning.test_strategies import found, on


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


@pytest.mark.parametrize(
    ("data", "is_labelled"),
    [
        ({"train": "rows.jsonl", "format": "text"}, False),
        ({"train": "rows.jsonl", "format": "chat"}, True),
        ({"train": "rows.jsonl", "format": "instruction"}, True),
        ({"train": ["a.jsonl", {"path": "b.jsonl", "format": "text"}], "format": "chat"}, True),
        ({"train": "a.jsonl", "format": "chat", "eval": {"path": "b.jsonl", "format": "text"}}, True),
    ],
)
def test_dialogues_are_labelled_also_beside_text_for_replay_and_text_alone_is_not(
    data: dict[str, Any], is_labelled: bool
) -> None:
    spec = Spec.model_validate({"model": {"path": "m", "task": "causal-lm"}, "data": data})
    plans: dict[Method, JobPlan] = {"full": found(on(8, "H100-80"))}
    situation = situation_of(spec, plans, examples=9, tokens=90, tasks=1, goal="accuracy")
    assert situation.is_labelled is is_labelled and (situation.examples, situation.tokens) == (9, 90)


def test_the_machines_of_the_plans_decide_too() -> None:
    data = {"train": "rows.jsonl", "format": "chat"}
    spec = Spec.model_validate({"model": {"path": "m", "task": "causal-lm"}, "data": data})

    def of(full: JobPlan, lora: JobPlan) -> Situation:
        return situation_of(spec, {"full": full, "lora": lora}, examples=9, tokens=90, tasks=1, goal="accuracy")

    large, small = found(on(8, "H100-80")), found(replace(on(1, "A100-40"), node_gib=256))
    assert of(large, large).times_lora == 1.0 and not of(large, large).offloads
    assert of(small, large).offloads and of(small, large).times_lora > FAR_LONGER and not of(small, large).lacking
    lacking = of(found(on(1, "T4-16")), large)
    assert lacking.fitting == {"lora"} and lacking.lacking.endswith("GiB of host memory")


def test_machines_that_are_not_known_are_reported_before_the_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: {path: m, task: causal-lm}\ndata: {train: none.jsonl, format: text}\n")
    result = CliRunner().invoke(app, ["advise", str(tmp_path / "job.yaml")])
    assert result.exit_code == 2 and "the type of the GPUs is not known: give --on" in result.output
