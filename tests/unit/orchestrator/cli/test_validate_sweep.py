"""`fleetune validate` and `run` of a sweep: where a mistake is written, and which values are shown."""

from __future__ import annotations

import datetime
import json
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import open_run
from jobs.spec.load import load_sweep
from orchestrator.cli.app import app

BASE = """model: {path: ./model, task: causal-lm}
data: {train: ./rows.jsonl, format: text, eval_fraction: 0.5}
train:
  learning_rate: 1.0e-3
  warmup_ratio: 0.1
"""
SWEEP = """kind: sweep
base: ./job.yaml
budget:
  runs: 8
space:
  learning_rate: {min: 1.0e-5, max: 1.0e-2, log: true}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model/tokenizer.json").touch()
    (tmp_path / "model/model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"row {number}"}) for number in range(9)))
    (tmp_path / "job.yaml").write_text(BASE)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return "sweep.yaml"


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_budget_that_is_too_small_names_its_file_and_line(sweep: str, command: str) -> None:
    Path(sweep).write_text(SWEEP.replace("runs: 8", "runs: 0.1"))
    code, said = call(command, sweep)
    assert code == 2 and said.startswith("error: sweep.yaml:3: budget: it pays for at most 0.1 runs")


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_budget_of_fewer_tokens_than_a_trial_has_rows_is_refused_before_the_data_is_read(
    sweep: str, command: str
) -> None:
    Path("job.yaml").write_text(f"{BASE}  max_steps: 100\n")
    Path(sweep).write_text(SWEEP.replace("runs: 8", "tokens: 10"))
    code, said = call(command, sweep)
    assert code == 2 and said.startswith("error: sweep.yaml:3: budget: it pays for at most 0.1 runs"), said
    Path(sweep).write_text(SWEEP.replace("runs: 8", "tokens: 1_000_000"))
    assert call("validate", sweep)[0] == 0


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_field_that_cannot_vary_names_its_file_and_line(sweep: str, command: str) -> None:
    Path(sweep).write_text(f"{SWEEP}  data.seq_len: [64, 128]\n")
    code, said = call(command, sweep)
    assert code == 2 and said.startswith("error: sweep.yaml:7: space.data.seq_len: the model and the rows are prepared")


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_prior_for_another_algorithm_names_its_file_and_line(sweep: str, command: str) -> None:
    text = SWEEP.replace("runs: 8", "trials: 8")
    Path(sweep).write_text(f"{text}algorithm: random\nprior: {{learning_rate: 1.0e-3}}\n")
    code, said = call(command, sweep)
    assert code == 2 and said.startswith("error: sweep.yaml:8: prior: it is for algorithm: auto"), said


def test_a_grid_is_tried_whole_unless_a_budget_says_otherwise(sweep: str) -> None:
    grid = f"{SWEEP}  warmup_ratio: [0.0, 0.1]\nalgorithm: grid\n"
    Path(sweep).write_text(grid.replace("budget:\n  runs: 8\n", ""))
    code, said = call("validate", sweep)
    assert code == 0 and "at most 10 trials" in said and "last values" not in said, said
    Path(sweep).write_text(grid.replace("runs: 8", "trials: 6"))
    code, said = call("validate", sweep)
    assert code == 0 and "at most 6 trials" in said, said
    assert "the grid has 10 points: the last ones, with the last values of learning_rate, are left out" in said


def test_rungs_without_a_scheduler_are_a_warning(sweep: str) -> None:
    Path(sweep).write_text(f"{SWEEP}scheduler: none\nrungs: [0.5]\n")
    code, said = call("validate", sweep)
    assert code == 0 and "warning: rungs has no effect with scheduler: none" in said
    compare = SWEEP.replace("kind: sweep", "kind: compare\nmethods: [full, lora]")
    Path("compare.yaml").write_text(f"{compare}scheduler: none\nrungs: [0.5]\n")
    code, said = call("validate", "compare.yaml")
    assert code == 0 and said.count("warning: rungs has no effect with scheduler: none") == 1
    Path(sweep).write_text(f"{SWEEP}rungs: [0.5]\n")
    assert "rungs has no effect" not in call("validate", sweep)[1]


def test_a_mistake_in_the_base_names_the_file_of_the_base(sweep: str) -> None:
    Path("rows.jsonl").unlink()
    code, said = call("validate", sweep)
    assert code == 2 and "job.yaml:2: data.train" in said


def test_the_values_of_the_space_stand_in_place_of_the_bases(sweep: str) -> None:
    lines = call("validate", sweep)[1].splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("rate")] == [
        "1e-05..0.01 (log), linear, 10% warmup"
    ]
    more = "  warmup_ratio: {min: 0.0, max: 0.2}\n  lr_scheduler_type: [linear, cosine]\n  global_batch_size: [8, 16]\n"
    Path(sweep).write_text(SWEEP + more)
    lines = call("validate", sweep)[1].splitlines()
    found = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines}
    assert found["rate"] == "1e-05..0.01 (log), linear|cosine, warmup_ratio 0..0.2"
    assert found["batch"].endswith("; varies: train.global_batch_size 8|16")


def test_narrow_prints_no_command_that_would_be_refused(sweep: str, tmp_path: Path) -> None:
    found = load_sweep(sweep)
    assert found is not None
    root = open_run(found, str(tmp_path / "ended")).root
    write_outcome(JobPaths(root), Outcome(status=Status.INTERRUPTED, ended_at=datetime.datetime.now(datetime.UTC)))
    code, said = call("sweep", "narrow", root, "--set", "learning_rate=5e-3")
    assert code == 2 and "learning_rate" in said and "--resume" not in said
    code, said = call("sweep", "narrow", root, "--set", "learning_rate.max=5e-3")
    assert code == 2 and "--resume" in said and "--set space.learning_rate.max=5e-3" in said
