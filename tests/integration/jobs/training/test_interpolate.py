"""A run's model mixed with its base: tensor by tensor, whole directories, and what does not mix."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import orchestrator.cli.app as cli
from cluster.errors import DataError
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.record import open_run
from jobs.training.checkpoint.interpolate import export_interpolated, interpolate
from tests.support import tiny

IDS = torch.arange(30)[None]


@pytest.fixture
def base(tmp_path: pathlib.Path) -> pathlib.Path:
    return tiny.save_model(tmp_path / "base", "llama", seed=0)


@pytest.fixture
def tuned(tmp_path: pathlib.Path) -> pathlib.Path:
    return tiny.save_model(tmp_path / "tuned", "llama", seed=1)


def test_each_tensor_is_the_weighted_mean_and_the_directory_loads(
    tmp_path: pathlib.Path, base: pathlib.Path, tuned: pathlib.Path
) -> None:
    interpolate(str(tuned), str(base), str(tmp_path / "mixed"), 0.25)
    ours, theirs, mixed = (load_file(folder / "model.safetensors") for folder in (tuned, base, tmp_path / "mixed"))
    assert mixed.keys() == ours.keys()
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * ours[name] + 0.25 * theirs[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mixed")
    assert torch.equal(model.model.norm.weight, mixed["model.norm.weight"]) and model(IDS).logits.isfinite().all()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "mixed").chat_template == tiny.CHATML


@pytest.mark.parametrize(("base_weight", "expected"), [(0.0, "tuned"), (1.0, "base")])
def test_at_the_ends_it_is_one_of_the_two(
    tmp_path: pathlib.Path, base: pathlib.Path, tuned: pathlib.Path, base_weight: float, expected: str
) -> None:
    interpolate(str(tuned), str(base), str(tmp_path / "mixed"), base_weight)
    mixed, same = (load_file(tmp_path / name / "model.safetensors") for name in ("mixed", expected))
    assert all(torch.equal(mixed[name], same[name]) for name in same)


def test_weights_in_bf16_and_in_many_files_are_mixed_in_fp32(
    tmp_path: pathlib.Path, base: pathlib.Path, tuned: pathlib.Path
) -> None:
    half = tmp_path / "half"
    transformers.AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.bfloat16).save_pretrained(
        half, max_shard_size="20KB"
    )
    interpolate(str(half), str(base), str(tmp_path / "mixed"), 0.5, max_shard_bytes=30_000)
    index = json.loads((tmp_path / "mixed/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1 and not (tmp_path / "mixed/model.safetensors").exists()
    for name, file in index.items():
        mixed = load_file(tmp_path / "mixed" / file)[name]
        own = load_file(half / json.loads((half / "model.safetensors.index.json").read_text())["weight_map"][name])
        exact = (own[name].float() + load_file(base / "model.safetensors")[name]) / 2
        assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, exact.to(torch.bfloat16))


def test_other_shapes_and_new_heads_are_refused_before_anything_is_written(
    tmp_path: pathlib.Path, base: pathlib.Path, tuned: pathlib.Path
) -> None:
    other = tmp_path / "other"
    config = transformers.AutoConfig.from_pretrained(base)
    config.intermediate_size = 96
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(DataError, match=r"6 of \d+ tensors .*mlp\.down_proj\.weight \[32, 64\] \(\[32, 96\] there\)"):
        interpolate(str(tuned), str(other), str(tmp_path / "mixed"), 0.5)
    encoder, classifier = (tiny.save_model(tmp_path / kind, kind) for kind in ("encoder", "bert"))
    with pytest.raises(DataError, match=r"missing there.*a new classification head has no counterpart"):
        interpolate(str(classifier), str(encoder), str(tmp_path / "mixed"), 0.5)
    assert not (tmp_path / "mixed").exists()


def test_the_command_mixes_the_export_of_a_run_and_leaves_it_as_it_is(
    tmp_path: pathlib.Path, base: pathlib.Path, tuned: pathlib.Path
) -> None:
    paths = open_run(tiny.spec_of(tmp_path, base, tmp_path / "text.jsonl"))
    shutil.move(tuned, paths.model)
    now = datetime.datetime.now(datetime.UTC)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, step=3, model_path=paths.model, ended_at=now))
    before, names = load_file(f"{paths.model}/model.safetensors"), sorted(os.listdir(paths.model))

    def export(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["export", paths.root, "--base-weight", "0.3", *options])
        return result.exit_code, result.output

    code, said = export("--to", str(tmp_path / "mixed"))
    assert code == 0 and said.splitlines()[-1] == f"model {tmp_path / 'mixed'}"
    mixed = load_file(tmp_path / "mixed/model.safetensors")
    theirs = load_file(base / "model.safetensors")
    assert all(torch.allclose(mixed[name], 0.7 * before[name] + 0.3 * theirs[name]) for name in before)
    own, taken = "is the run's own directory", "holds a model already"
    for to, reason in ((), "--base-weight needs --to DIR"), ((f"{paths.model}/",), own), ((str(base),), taken):
        code, said = export(*(["--to", *to] if to else []))
        assert code == 2 and reason in said
    after = load_file(f"{paths.model}/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert sorted(os.listdir(paths.model)) == names and set(names) <= {*os.listdir(tmp_path / "mixed"), "made_from"}


def test_a_run_whose_export_was_removed_is_mixed_from_its_checkpoint(
    tmp_path: pathlib.Path, base: pathlib.Path
) -> None:
    paths = open_run(tiny.spec_of(tmp_path, base, tmp_path / "text.jsonl"))
    now = datetime.datetime.now(datetime.UTC)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, step=3, model_path=paths.model, ended_at=now))
    with pytest.raises(DataError, match="neither a model nor a complete checkpoint"):
        export_interpolated(paths.root, str(tmp_path / "mixed"), 0.5)
    assert not (tmp_path / "mixed").exists()
