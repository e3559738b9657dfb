"""LoRA and prompt tuning: a gang computes what plain PyTorch with PEFT computes, and exports what PEFT reads."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import InputError
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from jobs.training.checkpoint.to_model import export_run, merge_run
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang
from tests.support.reference import plain_losses
from tests.support.reload_logits import reloaded_logits

STEPS, STOP = 6, 3
RANK, PROMPT = 4, 5
EXPORTED = ("llama", "gpt2", "encoder", "prompt", "prompted encoder")
LORA = {"method": "lora", "lora__rank": RANK, "lora__alpha": 8.0}
TUNED = {"method": "prompt", "prompt__num_virtual_tokens": PROMPT, "prompt__init_text": "a good film"}
# All except the first two compute what "llama" does, in other ways.
WAYS: dict[str, dict[str, Any]] = {
    "stage 1": {"train__zero__stage": 1},
    "stage 2": {"train__zero__stage": 2},
    "recomputed": {"train__gradient_checkpointing": True},
    "nothing persistent": {"train__zero__param_persistence_threshold": 0},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All jobs on two workers in one gang, and then some on one worker in another."""
    folder = tmp_path_factory.mktemp("methods")
    llama, gpt2, encoder = (tiny.save_model(folder / kind, kind) for kind in ("llama", "gpt2", "encoder"))
    text = tiny.write_text(folder / "text.jsonl", 400)
    labelled = tiny.write_labelled(folder / "labelled.jsonl", 200, 3)
    batch = {
        "train__global_batch_size": 8,
        "train__per_device_train_batch_size": 2,
        "train__max_steps": STEPS,
        "train__learning_rate": 1e-2,
        "eval__eval_on_start": False,
    }

    def spec(model: pathlib.Path, **changes: Any) -> Any:
        is_encoder = model == encoder
        return tiny.spec_of(folder, model, labelled if is_encoder else text, classify=is_encoder, **batch, **changes)

    dropped = spec(llama, **LORA, lora__dropout=0.3)
    specs = {
        "llama": spec(llama, **LORA),
        "gpt2": spec(gpt2, **LORA, lora__target_modules=["c_attn", "mlp.c_fc"]),
        "encoder": spec(encoder, **LORA),
        "prompt": spec(llama, **TUNED),
        "prompted encoder": spec(encoder, **TUNED),
        "bf16": spec(llama, **LORA, train__bf16=True),
        **{name: spec(llama, **LORA, **changes) for name, changes in WAYS.items()},
        "dropped": dropped,
    }
    on_two = [case_of(folder, name, spec) for name, spec in specs.items()]
    stopped = case_of(folder, "stopped", dropped, STOP)
    run_gang(folder, 2, [*on_two, stopped], with_export=frozenset({*EXPORTED, "bf16", "stage 2"}))
    alone = dropped.resources.model_copy(update={"num_workers": 1})
    on_one = dataclasses.replace(stopped, stop_at=None, spec=dropped.model_copy(update={"resources": alone}))
    whole = specs["llama"].model_copy(update={"resources": alone})
    run_gang(folder, 1, [on_one, case_of(folder, "on one", whole)])
    return {case.name: case for case in [*on_two, on_one, case_of(folder, "on one", whole)]}


def with_peft(case: Case) -> Any:
    """The same adapter, made by PEFT alone."""
    import peft

    spec = case.spec
    task = "SEQ_CLS" if spec.num_labels else "CAUSAL_LM"
    if spec.method.kind == "lora":
        every = spec.lora.target_modules == ("all-linear",)
        targets: Any = "all-linear" if every else list(spec.lora.target_modules)
        is_conv = case.name == "gpt2"
        config: Any = peft.LoraConfig(
            r=RANK, lora_alpha=8, target_modules=targets, task_type=task, fan_in_fan_out=is_conv
        )
    else:
        config = peft.PromptTuningConfig(
            num_virtual_tokens=PROMPT,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="a good film",
            tokenizer_name_or_path=spec.model.path,
            task_type=task,
        )

    def changed(model: Any) -> Any:
        torch.manual_seed(spec.seed)
        return peft.get_peft_model(model, config).train()

    return changed


@pytest.mark.parametrize("name", EXPORTED)
def test_two_workers_give_the_losses_of_plain_pytorch_with_peft(cases: dict[str, Case], name: str) -> None:
    """The time is that of all runs of the file."""
    case = cases[name]
    expected = plain_losses(case.spec, case.prepared, STEPS, with_peft(case))
    assert case.record("loss") == pytest.approx(expected.loss, rel=1e-4)
    assert case.record("grad_norm") == pytest.approx(expected.grad_norm, rel=1e-3)
    assert min(expected.loss) < expected.loss[0]


@pytest.mark.parametrize("name", [*WAYS, "on one"])
def test_the_way_it_is_run_does_not_change_the_loss(cases: dict[str, Case], name: str) -> None:
    assert cases[name].record("loss") == pytest.approx(cases["llama"].record("loss"), rel=1e-5)
    assert cases[name].record("grad_norm") == pytest.approx(cases["llama"].record("grad_norm"), rel=1e-4)


def test_a_run_goes_on_on_another_number_of_workers_with_the_same_dropout(cases: dict[str, Case]) -> None:
    whole, stopped = cases["dropped"].record("loss"), cases["stopped"].record("loss")
    assert stopped == pytest.approx(whole, abs=1e-6) and len(stopped) == STEPS
    assert whole != pytest.approx(cases["llama"].record("loss"), abs=1e-6)


def test_a_checkpoint_holds_what_is_trained_alone(cases: dict[str, Case]) -> None:
    for name, of_layers in (("llama", 2 * 7), ("gpt2", 2 * 2), ("encoder", 2 * 6 + 1)):
        paths = cases[name].paths
        commit = read_commit(paths, committed_steps(paths)[-1])
        trained = sum(int(np.prod(shape)) for shape in commit.shapes.values())
        assert len([one for one in commit.shapes if ".lora_" in one]) == 2 * of_layers
        plan = next(event for event in read_journal(paths.events) if event["kind"] == "plan")
        assert plan["data"]["trainable"] == trained < plan["data"]["parameters"] / 3
        assert f"trainable {trained / 1000:.3g}k of " in plan["message"]
        assert commit.bytes < 12 * trained + 50_000  # headers and buffers
    heads = [one for one in commit.shapes if "classifier" in one]
    assert sorted(heads) == [f"classifier.modules_to_save.default.{one}" for one in ("bias", "weight")]


@pytest.mark.parametrize("name", EXPORTED)
def test_peft_reads_the_exported_adapter_and_computes_the_trained_models_logits(
    cases: dict[str, Case], name: str
) -> None:
    case = cases[name]
    config = json.loads(pathlib.Path(case.paths.model, "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == case.spec.model.path and config["inference_mode"]
    assert not pathlib.Path(case.paths.model, "config.json").exists()
    reloaded = reloaded_logits(case, case.paths.model, case.spec.model.path)
    np.testing.assert_allclose(reloaded, np.load(case.logits_file), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*EXPORTED, "bf16"])
def test_the_newest_checkpoint_gives_the_adapter_that_the_run_exported(
    cases: dict[str, Case], name: str, tmp_path: pathlib.Path
) -> None:
    case = with_spec_file(cases[name])
    export_run(case.paths.root, str(tmp_path), say=lambda text: None)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in pathlib.Path(case.paths.model).iterdir())
    exported = load_file(f"{case.paths.model}/adapter_model.safetensors")
    rebuilt = load_file(tmp_path / "adapter_model.safetensors")
    assert exported.keys() == rebuilt.keys()
    assert all(torch.equal(exported[one], rebuilt[one]) for one in exported)
    configs = [json.loads(pathlib.Path(one, "adapter_config.json").read_text()) for one in (case.paths.model, tmp_path)]
    assert configs[0] == configs[1]


def test_a_succeeded_run_whose_model_was_removed_is_exported_from_its_checkpoint(
    cases: dict[str, Case], tmp_path: pathlib.Path
) -> None:
    case = with_spec_file(cases["llama"])
    before, paths = load_file(f"{case.paths.model}/adapter_model.safetensors"), JobPaths(str(tmp_path / "copied"))
    shutil.copytree(case.paths.root, paths.root, ignore=shutil.ignore_patterns("model", "merged"))
    ended = {"status": Status.SUCCEEDED, "step": STEPS, "ended_at": datetime.datetime.now(datetime.UTC)}
    write_outcome(paths, Outcome(**ended, model_path=case.paths.model))
    said: list[str] = []
    for to in (str(tmp_path / "elsewhere"), None):
        folder = export_run(paths.root, to, say=said.append)
        after = load_file(f"{folder}/adapter_model.safetensors")
        assert before.keys() == after.keys() and all(torch.equal(before[one], after[one]) for one in before)
    assert said == [f"out of the checkpoint of step {STEPS}"] * 2
    assert export_run(paths.root, say=said.append) == paths.model and len(said) == 2, "it is there now"


@pytest.mark.parametrize("name", ["llama", "gpt2", "encoder"])
def test_a_merged_adapter_is_a_whole_model_with_the_same_logits(cases: dict[str, Case], name: str) -> None:
    case = with_spec_file(cases[name])
    folder = merge_run(case.paths.root, say=lambda text: None)
    assert folder == case.paths.merged
    np.testing.assert_allclose(reloaded_logits(case, folder), np.load(case.logits_file), rtol=1e-4, atol=1e-5)
    base = load_file(f"{case.spec.model.path}/model.safetensors")
    merged = load_file(f"{folder}/model.safetensors")
    assert len(merged) == len(base) + (2 if name == "encoder" else 0)


def test_a_prompt_cannot_be_merged(cases: dict[str, Case]) -> None:
    with pytest.raises(InputError, match="method: prompt; its export is a prompt"):
        merge_run(with_spec_file(cases["prompt"]).paths.root)


def with_spec_file(case: Case) -> Case:
    pathlib.Path(case.paths.spec).write_bytes(dump_spec(case.spec))
    pathlib.Path(case.paths.logs).mkdir(exist_ok=True)
    return case
