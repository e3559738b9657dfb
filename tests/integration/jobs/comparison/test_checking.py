"""Each method of a comparison is checked before anything is started, and begins at its own learning rate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import InputError
from jobs.compare import open_comparison, run_comparison
from jobs.comparison.checking import checked_methods, sweeps_to_plan
from jobs.finetune import run_on_ray
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.search.rules.prior import PROMPT_RATE, rate_by_size
from jobs.spec.compare import CompareSpec
from jobs.spec.load import load_sweep, load_to_run
from jobs.spec.space import Range
from jobs.sweep import run_sweep
from orchestrator.cli.app import app
from tests.support import tiny

WIDTH = 32  # of the tiny models


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    tiny.save_model(folder / "llama", "llama")
    tiny.write_text(folder / "text.jsonl", 60)
    return folder


def compare_in(workshop: Path, methods: list[Any], train: dict[str, Any] | None = None, **fields: Any) -> CompareSpec:
    base = {
        "model": {"path": "llama", "task": "causal-lm"},
        "data": {"train": "text.jsonl", "format": "text", "eval_fraction": 0.2, "seq_len": 32, "packing": False},
        "train": {"max_steps": 8, **(train or {})},
        "resources": {"num_workers": 1, "gpus_per_worker": 0},
        "storage_path": "runs",
    }
    written = {"kind": "compare", "base": base, "methods": methods, **fields}
    (workshop / "compare.json").write_text(json.dumps(written))
    spec = load_to_run(str(workshop / "compare.json"))
    assert isinstance(spec, CompareSpec)
    return spec


def test_methods_whose_steps_have_unequal_data_are_not_compared_by_steps(workshop: Path) -> None:
    packed = compare_in(workshop, ["full", "prompt"])
    packed = packed.model_copy(update={"base": packed.base.with_value("data.packing", True)})
    for check in (checked_methods, sweeps_to_plan):
        with pytest.raises(InputError, match=r"its rows are not packed: give num_train_epochs instead"):
            check(packed)
    epochs = packed.base.with_value("train.max_steps", None).with_value("train.num_train_epochs", 1.0)
    assert len(checked_methods(packed.model_copy(update={"base": epochs}))) == 2


def test_each_method_begins_at_its_own_rate_whether_or_not_the_base_has_one(workshop: Path) -> None:
    lora = rate_by_size(WIDTH, is_lora=True)
    found = checked_methods(compare_in(workshop, ["full", "lora", "prompt"]))
    rates = {one.name: one.sweep.prior["learning_rate"] for one in found}
    assert rates == {"full": rate_by_size(WIDTH), "lora": lora, "prompt": PROMPT_RATE}
    assert [one.prior_from for one in found[:2]] == [f"the model's width of {WIDTH}"] * 2
    given = checked_methods(compare_in(workshop, ["full", "lora"], {"learning_rate": 7e-4}))
    assert [one.sweep.prior["learning_rate"] for one in given] == [7e-4, lora]
    assert not any("is unusual" in warning for one in found for warning in one.found.warnings)


def test_the_width_is_that_of_the_model_that_a_run_has_exported(workshop: Path) -> None:
    shutil.copytree(workshop / "llama", workshop / "runs/first/model")
    (workshop / "runs/first/spec.json").write_text("{}")
    spec = compare_in(workshop, ["full", "lora"])
    model = spec.base.model.model_copy(update={"path": "run:first"})
    spec = spec.model_copy(update={"base": spec.base.model_copy(update={"model": model})})
    found = checked_methods(spec)
    assert [one.sweep.prior["learning_rate"] for one in found] == [rate_by_size(WIDTH), rate_by_size(WIDTH, True)]
    assert {one.sweep.base.model.path for one in found} == {str(workshop / "runs/first/model")}


def test_a_default_space_lies_around_the_rate_of_its_method_without_a_prior_too(workshop: Path) -> None:
    found = checked_methods(compare_in(workshop, ["full", "lora"], algorithm="random"))
    for one, rate in zip(found, (rate_by_size(WIDTH), rate_by_size(WIDTH, is_lora=True)), strict=True):
        space = one.sweep.dimensions["learning_rate"]
        assert isinstance(space, Range) and space.min == pytest.approx(rate / 10)


def test_a_rank_that_is_larger_than_the_matrices_is_named_with_its_method(workshop: Path) -> None:
    ranks = [{"name": f"lora-r{rank}", "method": "lora", "lora": {"rank": rank}} for rank in (WIDTH, 1000)]
    assert len(checked_methods(compare_in(workshop, ["full", ranks[0]]))) == 2
    with pytest.raises(InputError, match=r"method lora-r1000.*lora\.rank.*1000 is more than the smaller side of every"):
        checked_methods(compare_in(workshop, ["full", *ranks]))


def test_a_mistake_that_all_methods_share_is_said_once(workshop: Path) -> None:
    spec = compare_in(workshop, ["full", "lora"], space={"leanring_rate": [1e-4]})
    with pytest.raises(InputError) as caught:
        open_comparison(spec, NoProgress())
    assert len(str(caught.value).splitlines()) == 1 and "method" not in str(caught.value).partition(":")[0]
    assert not (workshop / "runs").exists() or not list((workshop / "runs").glob("compare-*"))


def test_the_spec_of_each_sweep_is_written_before_the_first_one_begins(workshop: Path) -> None:
    """A search that begins later does not learn from the ones before it."""
    paths = open_comparison(compare_in(workshop, ["full", "lora"]), NoProgress())
    for name in ("full", "lora"):
        sweep = load_sweep(JobPaths(paths.method(name)).spec)
        assert sweep is not None and sweep.base.method.kind == name and sweep.prior


def test_targets_that_match_no_module_are_refused_before_anything_is_written(workshop: Path) -> None:
    wrong = {"name": "lora-wrong", "method": "lora", "lora": {"target_modules": ["no_such_module"]}}
    spec = compare_in(workshop, ["full", wrong])
    spec = spec.model_copy(update={"base": spec.base.model_copy(update={"storage_path": str(workshop / "none")})})
    with pytest.raises(InputError, match=r"method lora-wrong.*no_such_module"):
        run_comparison(spec, progress=NoProgress(), display=NoProgress)
    with pytest.raises(InputError, match="no_such_module"):
        run_sweep(spec.sweep_of(spec.methods[1]), progress=NoProgress())
    with pytest.raises(InputError, match="no_such_module"):
        run_on_ray(spec.sweep_of(spec.methods[1]).base, progress=NoProgress())
    assert list((workshop / "none").glob("*/spec.json")) == []


def test_validate_shows_where_each_search_begins(workshop: Path) -> None:
    compare_in(workshop, ["full", {"name": "lora-r4", "method": "lora", "lora": {"rank": 4}}])
    shown = CliRunner().invoke(app, ["validate", str(workshop / "compare.json")])
    assert shown.exit_code == 0, shown.output
    lines = {line.partition(" ")[0]: line for line in shown.output.splitlines()}
    assert "full fine-tuning" in lines["full"] and f"the model's width of {WIDTH}" in lines["full"]
    assert (
        "LoRA of rank 4" in lines["lora-r4"]
        and f"beginning at learning_rate {10 * rate_by_size(WIDTH):.3g}" in (lines["lora-r4"])
    )
    report = CliRunner().invoke(app, ["validate", "--json", str(workshop / "compare.json")])
    assert list(json.loads(report.output)["methods"]) == ["full", "lora-r4"]


def test_plan_predicts_each_method(workshop: Path) -> None:
    compare_in(workshop, ["full", "lora", "prompt"])
    shown = CliRunner().invoke(app, ["plan", "--on", "1xH100-80", "--json", str(workshop / "compare.json")])
    assert shown.exit_code == 0, shown.output
    plans = json.loads(shown.stdout)
    assert list(plans) == ["full", "lora", "prompt"] and plans["lora"]["parameters"] > plans["full"]["parameters"]
    assert plans["prompt"]["trained"] < plans["lora"]["trained"]
