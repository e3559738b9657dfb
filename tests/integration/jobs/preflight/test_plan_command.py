"""`fleetune plan`: what it prints for a small model, what it chooses, and what bad input gets. No weights are there."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from tests.support import tiny

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 6, "vocab_size": 8000, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA))
    (folder / "text.jsonl").write_text('{"text": "a text"}\n')
    job: dict[str, Any] = {
        "model": {"path": "model", "task": "causal-lm"},
        "data": {"train": "text.jsonl", "format": "text", "seq_len": 256},
        "train": {"global_batch_size": 64, "max_steps": 100},
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    return file


def planned(spec: pathlib.Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", str(spec), "--json", *arguments])
    assert result.exit_code in (0, 2), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_it_says_what_a_job_takes_and_keeps_the_global_batch(spec: pathlib.Path) -> None:
    plan = planned(spec, "--on", "2x4xH100-80", "--price", "2.5")
    assert plan["machines"] == "2x4xH100-80" and plan["precision"] == "bf16"
    per_layer = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 512 + 2 * 256
    assert plan["parameters"] == 2 * 8000 * 256 + 6 * per_layer + 256
    chosen = plan["options"][plan["chosen"]]
    assert chosen["fits"] and chosen["cost"] == pytest.approx(2.5 * 8 * chosen["hours"])
    assert chosen["hours"] == pytest.approx(100 * chosen["step"]["seconds"] / 3600)
    for option in plan["options"]:
        rows = option["strategy"]["per_device_train_batch_size"] * option["gradient_accumulation_steps"] * 8
        assert 64 <= rows < 64 + option["strategy"]["per_device_train_batch_size"] * 8
        memory = dict(option["memory"])
        assert memory.pop("host") == sum(option["host_memory"].values())
        assert memory.pop("total") == sum(memory.values())


def test_a_prompt_is_planned_with_its_tokens_before_every_sample(spec: pathlib.Path) -> None:
    full, few, many = (
        planned(spec, "--on", "2xH100-80", *(f"--set={one}" for one in changes))
        for changes in ([], ["method=prompt"], ["method=prompt", "prompt.num_virtual_tokens=100"])
    )
    assert full["trained"] == full["parameters"] and (few["trained"], many["trained"]) == (20 * 256, 100 * 256)
    like = [next(one for one in plan["options"] if one["fits"])["memory"] for plan in (full, few)]
    assert like[1]["gradients"] < like[0]["gradients"] / 100 and like[1]["total"] < like[0]["total"]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_takes_the_same_memory_of_frozen_layers_whatever_stage_the_spec_has(
    spec: pathlib.Path, stage: int
) -> None:
    def memory_of(*changes: str) -> list[tuple[int, dict[str, int]]]:
        plan = planned(spec, "--on", "2xH100-80", *(f"--set={one}" for one in ("method=lora", *changes)))
        options = [(one["strategy"], one["memory"]) for one in plan["options"]]
        return [
            (strategy["per_device_train_batch_size"], memory)
            for strategy, memory in options
            if (strategy["stage"], strategy["offload_optimizer"]) == (stage, False)
        ]

    fixed = "train.gradient_checkpointing=false"  # ZeRO-3, unless the spec has another stage
    assert memory_of(fixed) == memory_of(fixed, f"train.zero.stage={stage}") != []


def test_no_worker_of_an_elastic_job_is_left_without_rows(spec: pathlib.Path) -> None:
    given = ("resources.num_workers={min: 2, max: 8}", "train.global_batch_size=16")
    plan = planned(spec, "--on", "2xH100-80", *(f"--set={one}" for one in given))
    assert {one["strategy"]["per_device_train_batch_size"] for one in plan["options"]} == {1, 2}


def test_a_mixture_has_the_steps_of_its_run(tmp_path: pathlib.Path) -> None:
    model = tiny.save_model(tmp_path / "model", "llama")
    sources = [{"path": str(tiny.write_text(tmp_path / f"{rows}.jsonl", rows)), "weight": 1.0} for rows in (20, 200)]
    job = {
        "model": {"path": str(model), "task": "causal-lm"},
        "data": {"train": sources, "format": "text", "seq_len": 64, "packing": False},
        "train": {"global_batch_size": 4, "num_train_epochs": 1},
        "storage_path": str(tmp_path / "runs"),
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))
    assert planned(file, "--on", "1xH100-80")["total_steps"] is None
    assert CliRunner().invoke(app, ["data", "prepare", str(file)]).exit_code == 0
    assert planned(file, "--on", "1xH100-80")["total_steps"] == 10, "an epoch: the smaller source once, and as many"


def test_what_the_spec_gives_is_not_changed(spec: pathlib.Path) -> None:
    given = ("train.per_device_train_batch_size=4", "train.zero.stage=2", "train.gradient_checkpointing=true")
    sets = [part for one in given for part in ("--set", one)]
    plan = planned(spec, "--on", "4xA100-40", *sets)
    assert plan["free"] == [] and len(plan["options"]) == 1
    strategy = plan["options"][0]["strategy"]
    assert (strategy["per_device_train_batch_size"], strategy["stage"]) == (4, 2)


def test_the_page_names_the_fields_to_write_and_workers_without_gpu_are_planned_too(spec: pathlib.Path) -> None:
    cpus = ["--set", "resources.gpus_per_worker=0", "--set", "resources.num_workers=2"]
    result = CliRunner().invoke(app, ["plan", str(spec), *cpus])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("machines   2xCPU (")
    assert any(line.startswith("copies of the state") for line in lines)
    assert any(line.startswith("* ") for line in lines)
    assert "Warning" not in result.output and "use_cache" not in result.output


def test_checkpointing_is_not_chosen_for_a_type_that_lacks_it(spec: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 128, "embedding_size": 32, "vocab_size": 1000}))  # fmt: skip
    job = {
        "model": {"path": str(tmp_path), "task": "sequence-classification", "num_labels": 2},
        "data": {"train": "texts.csv", "format": "classification", "seq_len": 64},
        "train": {"global_batch_size": 8},
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))
    plan = planned(file, "--on", "1xT4-16")
    assert "gradient_checkpointing" not in plan["free"] and plan["total_steps"] is None


def test_a_type_without_a_class_for_the_task_is_one_message(spec: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    result = CliRunner().invoke(app, ["plan", str(spec), "--on", "1xT4-16", "--set", f"model.path={tmp_path}"])
    assert result.exit_code == 2 and "has no class for causal-lm of model type t5" in result.output
    (tmp_path / "config.json").write_text("{")
    result = CliRunner().invoke(app, ["plan", str(spec), "--on", "1xT4-16", "--set", f"model.path={tmp_path}"])
    assert result.exit_code == 2 and "is not JSON" in result.output
    (tmp_path / "config.json").write_text("[" * 100_000)
    result = CliRunner().invoke(app, ["plan", str(spec), "--on", "1xT4-16", "--set", f"model.path={tmp_path}"])
    assert result.exit_code == 2 and "is not JSON" in result.output
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": {"quant_method": "fp8"}}))
    result = CliRunner().invoke(app, ["plan", str(spec), "--on", "1xT4-16", "--set", f"model.path={tmp_path}"])
    assert result.exit_code == 2 and "the weights are quantised (fp8)" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "8xH10-80"], "did you mean H100-80?"),
        (["--on", "8xA100"], "give A100-80 or A100-40"),
        (["--on", "4xH100-80,4xA100-80"], "A plan is for equal GPUs"),
        (["--on", "8 x V100-16", "--set", "train.bf16=true"], "V100-16 does not compute in bf16"),
        ([], "give --on, such as --on 1xH100-80"),
        (["--set", "resources.accelerator_type=A100"], "give --on 1xA100-80 or --on 1xA100-40"),
        (["--host-memory", "100"], "give --on too"),
        (["--on", "8xH100-80", "--host-memory", "inf"], "is not a finite number"),
        (["--on", "8xH100-80", "--price", "nan"], "greater than or equal to 0"),
        (["--on", "8xH100-80", "--set", "train.global_batch_size=4"], "fewer rows than 8xH100-80 has GPUs"),
        (["--on", "8xH100-80", "--set", "model.path=/nowhere"], "/nowhere"),
        (["--on", "8xH100-80", "--set", "train.bf16=true", "--set", "train.fp16=true"], "drop one of them"),
    ],
)
def test_bad_input_gets_one_message(spec: pathlib.Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["plan", str(spec), *arguments])
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output


def test_a_job_that_does_not_fit_gets_the_machines_on_which_it_would(
    spec: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # 150 million parameters, of which the hosts keep copies of 12 bytes each beside the program.
    large = LLAMA | {"hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(large))
    given = (
        "--on",
        "1xT4-16",
        "--host-memory",
        "1.6",
        "--set",
        f"model.path={tmp_path}",
        "--set",
        "train.zero.stage=2",
    )
    plan = planned(spec, *given)
    assert plan["chosen"] is None and plan["sufficient"]["machines"] == "2x1xT4-16" and plan["sufficient"]["fits"]
    page = CliRunner().invoke(app, ["plan", str(spec), *given])
    assert page.exit_code == 2 and "On 2x1xT4-16, it would fit (ZeRO 2, micro-batch 1): " in page.output
    assert page.output.endswith("These would help: more GPUs, or hosts with more memory\n")
    on = ("--on", "1xA10-24", "--host-memory", "120", *given[4:6], "--set", "train.zero.stage=3")
    deep = json.dumps(large | {"hidden_size": 4096, "num_hidden_layers": 16, "intermediate_size": 8192})
    (tmp_path / "config.json").write_text(deep)  # 2.5 billion: their states fit the host, not the GPU
    page = CliRunner().invoke(app, ["plan", str(spec), *on])
    assert page.exit_code == 2 and "With zero: {stage: 3, offload_optimizer: cpu}, it would fit: " in page.output
    page = CliRunner().invoke(app, ["plan", str(spec), "--on", "4xH100-80", "--set", "resources.gpus_per_worker=0"])
    resources = "resources:\n  num_workers: 4\n  gpus_per_worker: 1"
    assert f"fits; write in the spec:\n{resources}\ntrain:\n  per_device_train" in page.output


def test_advice_names_the_method_with_the_plan_of_each(tmp_path: pathlib.Path) -> None:
    model, data = tiny.save_model(tmp_path / "bert", "bert"), tiny.write_labelled(tmp_path / "rows.jsonl", 60, 3)
    job = {
        "model": {"path": str(model), "task": "sequence-classification", "num_labels": 3},
        "data": {"train": str(data), "format": "classification", "seq_len": 64},
        "train": {"global_batch_size": 8, "num_train_epochs": 1},
        "storage_path": str(tmp_path / "runs"),
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))
    result = CliRunner().invoke(app, ["advise", str(file), "--on", "1xA100-80", "--json"])
    assert result.exit_code == 0, result.output
    advice = json.loads(result.stdout)
    assert advice["method"] == "lora" and advice["examples"] == 60 and advice["tokens"] > 60
    rates = advice["learning_rates"]
    assert rates["lora"] == pytest.approx(10 * rates["full"]) and 0 < rates["prompt"] <= 0.5
    full, lora, prompt = (advice["plans"][method] for method in ("full", "lora", "prompt"))
    assert full["trained"] == full["parameters"] and 0 < lora["trained"] < lora["parameters"] // 2
    assert 0 < prompt["trained"] < lora["trained"]
    assert full["total_steps"] == lora["total_steps"] == prompt["total_steps"] == 8
    page = CliRunner().invoke(app, ["advise", str(file), "--on", "1xA100-80"]).output
    assert "method: lora" in page and "with 10,000 examples or more: full fine-tuning" in page
    assert "labelled data counts by its examples" in page and "learning rate\n" in page
    refused = CliRunner().invoke(app, ["advise", str(file), "--on", "1xH1000"])
    assert refused.exit_code == 2 and "H100" in refused.output


def test_of_a_sweep_one_gang_is_planned_and_the_whole_budget_is_counted(spec: pathlib.Path) -> None:
    base = json.loads(spec.read_text())
    base["data"]["eval_fraction"], base["resources"] = 0.1, {"num_workers": 2}
    file = spec.parent / "sweep.json"
    file.write_text(json.dumps({"kind": "sweep", "base": base, "algorithm": "random", "budget": {"trials": 6}}))
    plan = planned(file, "--on", "2x4xH100-80")
    assert plan["machines"] == "2xH100-80" and plan["sweep"]["gangs"] == 4 and plan["sweep"]["steps"] == 600
    hours = 600 * plan["options"][plan["chosen"]]["step"]["seconds"] / 3600
    assert plan["sweep"]["device_hours"] == plan["sweep"]["gpu_hours"] == pytest.approx(2 * hours)
    assert plan["sweep"]["cost"] is None
    assert planned(file, "--on", "2x4xH100-80", "--price", "3")["sweep"]["cost"] == pytest.approx(6 * hours)
    result = CliRunner().invoke(app, ["plan", str(file), "--on", "2x4xH100-80"])
    gangs, budget = result.output.splitlines()[-2:]
    assert gangs == "gangs   4 gangs of 2 workers at once" and budget.startswith(
        "budget  600 steps, 9.83M tokens in all: "
    )
    result = CliRunner().invoke(app, ["plan", str(file), "--on", "1xH100-80"])
    assert result.exit_code == 2 and "a gang of the sweep has 2 workers" in result.output
    short = CliRunner().invoke(app, ["plan", str(file), "--on", "2xH100-80", "--set", "budget={minutes: 0.001}"])
    assert short.output.splitlines()[-1].endswith("of the budget: a trial that has begun is trained to its next score")


def test_trials_with_different_engines_are_planned_as_they_are_written(spec: pathlib.Path) -> None:
    base = json.loads(spec.read_text())
    base["data"]["eval_fraction"] = 0.1
    file = spec.parent / "engines.json"
    space = {"learning_rate": [1e-4, 1e-3], "per_device_train_batch_size": [1, 64]}
    budget = {"trials": 6}
    file.write_text(
        json.dumps({"kind": "sweep", "base": base, "algorithm": "random", "budget": budget, "space": space})
    )
    plans = planned(file, "--on", "2xH100-80")
    assert list(plans) == ["per_device_train_batch_size 1", "per_device_train_batch_size 64"]
    for rows, plan in zip((1, 64), plans.values(), strict=True):
        (option,) = plan["options"]
        assert option["strategy"]["per_device_train_batch_size"] == rows and plan["chosen"] == 0
    large = ["--set", "space.per_device_train_batch_size=[1, 64]", "--set", "base.data.seq_len=512"]
    result = CliRunner().invoke(app, ["plan", str(file), "--on", "1xT4-16", *large, "--set", "base.train.zero.stage=3"])
    assert "trials with per_device_train_batch_size 64" in result.output and "gangs" in result.output


def test_a_budget_in_tokens_is_counted_only_if_those_of_a_run_are_known(spec: pathlib.Path) -> None:
    base = json.loads(spec.read_text())
    base["data"]["eval_fraction"] = 0.1
    file = spec.parent / "tokens.json"
    file.write_text(json.dumps({"kind": "sweep", "base": base, "budget": {"tokens": 20_000}}))
    plan = planned(file, "--on", "1xH100-80")
    assert plan["chosen"] is not None and "sweep" not in plan


def test_gangs_without_gpus_share_the_memory_of_the_machine(spec: pathlib.Path) -> None:
    base = json.loads(spec.read_text())
    base["data"]["eval_fraction"], base["resources"] = 0.1, {"num_workers": 1, "gpus_per_worker": 0}
    file = spec.parent / "cpus.json"
    file.write_text(json.dumps({"kind": "sweep", "base": base, "algorithm": "random", "budget": {"trials": 6}}))
    job = spec.parent / "on-cpus.json"
    job.write_text(json.dumps(base))
    plan, alone = planned(file), planned(job)
    gangs = min(6, os.cpu_count() or 1)
    assert plan["sweep"]["gangs"] == gangs and plan["device_bytes"] == pytest.approx(alone["device_bytes"] / gangs)
    page = CliRunner().invoke(app, ["plan", str(file), "--set", "base.train.max_steps=null"]).output
    assert "--set base.train.max_steps=1000 --set base.train.num_train_epochs=null" in page
