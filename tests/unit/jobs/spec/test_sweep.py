"""What a sweep may say, and what is said of one that is wrong, before anything is started."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, SpecError
from jobs.run.paths import JobPaths
from jobs.run.record import open_run
from jobs.search.rules.budget import check_lengths
from jobs.search.rules.checking import check_sweep_resumable
from jobs.search.rules.spec_text import format_space
from jobs.search.rules.varying import ENGINE, VARYING, check_space, engine_key, engines, field_meant, trial_spec
from jobs.spec.checking.lines import parse
from jobs.spec.checking.overrides import override
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec, load_sweep
from jobs.spec.space import Range
from jobs.spec.sweep import SweepSpec

BASE: dict[str, Any] = {
    "model": {"path": "./model", "task": "sequence-classification", "num_labels": 2},
    "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.1},
    "train": {"learning_rate": 1e-4, "warmup_steps": 5},
    "storage_path": "runs",
}


def sweep_of(folder: Path, base: Any = "base.json", **fields: Any) -> SweepSpec:
    (folder / "jobs").mkdir(exist_ok=True)
    (folder / "jobs/base.json").write_text(json.dumps(BASE))
    (folder / "sweep.json").write_text(json.dumps({"kind": "sweep", "base": base, **fields}, indent=1))
    sweep = load_sweep(str(folder / "sweep.json"))
    assert sweep is not None
    check_space(sweep)
    return sweep


def test_the_base_may_be_a_file_whose_paths_are_its_own(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "jobs/base.json")
    assert sweep.base.storage_path == str(tmp_path / "jobs/runs")
    assert sweep.base.data.train[0].path == str(tmp_path / "jobs/rows.jsonl")
    inline = sweep_of(tmp_path, BASE)
    assert inline.base.storage_path == str(tmp_path / "runs")


def test_the_set_values_of_a_base_in_a_file(tmp_path: Path) -> None:
    sweep_of(tmp_path, "jobs/base.json")
    sweep = load_sweep(str(tmp_path / "sweep.json"), ["base.train.max_steps=7", "budget.trials=3"])
    assert sweep is not None and sweep.base.train.max_steps == 7 and sweep.budget.trials == 3


def test_a_set_base_replaces_the_files_base_before_other_changes(tmp_path: Path) -> None:
    sweep_of(tmp_path, "jobs/base.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/base.json").write_text(json.dumps({**BASE, "seed": 7}))
    sweep = load_sweep(str(tmp_path / "sweep.json"), ["base.train.max_steps=7", "base=other/base.json"])
    assert sweep is not None and (sweep.base.seed, sweep.base.train.max_steps) == (7, 7)
    assert sweep.base.storage_path == str(tmp_path / "other/runs")
    with pytest.raises(SpecError, match=r"^--set: base: cannot read .*nope\.json"):
        load_sweep(str(tmp_path / "sweep.json"), ["base=nope.json"])


def test_it_is_what_it_was_after_it_was_written_and_read(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE, space={"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}, "seed": [1, 2]})
    (tmp_path / "again.json").write_text(sweep.model_dump_json())
    assert load_sweep(str(tmp_path / "again.json")) == sweep


def test_without_a_space_it_is_the_rate_around_the_bases_and_the_warmup(tmp_path: Path) -> None:
    rate, warmup = sweep_of(tmp_path, BASE).dimensions.values()
    assert isinstance(rate, Range) and rate.log and rate.min == pytest.approx(1e-5) and rate.max == pytest.approx(1e-3)
    assert warmup == Range(min=0.0, max=0.2)


def test_the_points_of_a_range_are_even_on_its_own_scale() -> None:
    assert Range(min=1e-5, max=1e-3, log=True).values(3) == pytest.approx((1e-5, 1e-4, 1e-3))
    assert Range(min=0.0, max=0.2).values(3) == pytest.approx((0.0, 0.1, 0.2))
    uneven = Range(min=1.8737379987164537e-05, max=0.0018737379987164538, log=True)
    assert uneven.values(4)[-1] == uneven.max, "a grid's last value is inside its range"


def test_a_trial_is_the_base_with_its_values(tmp_path: Path) -> None:
    base = sweep_of(tmp_path, BASE).base
    trial = trial_spec(base, {"learning_rate": 3e-4, "train.warmup_ratio": 0.1})
    assert (trial.train.learning_rate, trial.train.warmup_ratio, trial.train.warmup_steps) == (3e-4, 0.1, None)
    (tmp_path / "trial.json").write_bytes(dump_spec(trial))
    assert load_spec(str(tmp_path / "trial.json")) == trial
    train = trial.train.model_copy(update={"learning_rate": 1e-4, "warmup_ratio": None, "warmup_steps": 5})
    assert trial.model_copy(update={"train": train}) == base


def test_fields_of_the_engine_and_weights_of_sources_may_vary(tmp_path: Path) -> None:
    sources = [{"path": "a.jsonl", "weight": 1.0}, {"path": "b.jsonl", "weight": 2.0}]
    base = {**BASE, "data": {**BASE["data"], "train": sources}, "train": {"max_steps": 9}}
    sweep = sweep_of(tmp_path, base, space={"bf16": [True, False], "data.train.1.weight": {"min": 1, "max": 4}})
    spec = trial_spec(sweep.base, {"bf16": True, "data.train.1.weight": 3.5})
    assert spec.train.bf16
    assert [source.weight for source in spec.data.train] == [1.0, 3.5]
    assert engine_key(spec) != engine_key(sweep.base)
    assert engine_key(trial_spec(sweep.base, {"data.train.1.weight": 3.5, "seed": 9})) == engine_key(sweep.base)
    assert format_space(sweep) == "bf16 True|False, train.1.weight 1..4"


def test_values_that_fit_only_together_are_taken(tmp_path: Path) -> None:
    base = {**BASE, "train": {"global_batch_size": 8}}
    fields = {"global_batch_size": [16], "gradient_accumulation_steps": [16]}
    assert engines(sweep_of(tmp_path, base, space=fields)) == [dict.fromkeys(fields, 16)]


def test_a_batch_in_rows_replaces_the_bases_batch_in_tokens(tmp_path: Path) -> None:
    base = {**BASE, "train": {"global_batch_tokens": 8192}}
    sweep = sweep_of(tmp_path, base, space={"global_batch_size": [8, 16]})
    train = trial_spec(sweep.base, {"global_batch_size": 16}).train
    assert (train.global_batch_size, train.global_batch_tokens) == (16, None)


def test_a_value_that_leaves_too_few_steps_for_the_rungs_is_refused(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE, algorithm="random", scheduler="halving", space={"global_batch_size": [8, 64]})

    def steps_of(spec: Spec) -> int:
        return 64 // (spec.train.global_batch_size or 8)

    with pytest.raises(SpecError, match="with global_batch_size 64, a run has too few steps"):
        check_lengths(sweep, steps_of)


def test_every_field_that_may_vary_is_one_of_the_spec_and_goes_by_its_last_name() -> None:
    from jobs.spec.checking.fields import spec_fields

    assert set(spec_fields(Spec)) >= VARYING
    assert {field_meant(name.rpartition(".")[2]) for name in VARYING} == VARYING


RATES = {"min": 1e-5, "max": 1e-3}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"space": {"learning_rat": RATES}}, "space.learning_rat: unknown key; did you mean"),
        ({"space": {"lr": RATES}}, "space.lr: unknown key; use train.learning_rate"),
        ({"space": {"learning_rate": {"min": 1e-3, "max": 1e-5}}}, "min (0.001) must be less than max (1e-05)"),
        ({"space": {"learning_rate": {"min": 0, "max": 1, "log": True}}}, "a logarithm needs numbers above 0"),
        ({"space": {"learning_rate": {"min": 0, "max": 1e-3}}}, "space.learning_rate: must be greater than 0"),
        ({"space": {"warmup_steps": {"min": 0, "max": 20}}}, "a share below 1. A range draws any number"),
        (
            {"base": {**BASE, "train": {"max_steps": 9}}, "space": {"warmup_steps": [0, 10]}},
            "space.warmup_steps: warmup_steps (10) is longer than the run of 9 steps",
        ),
        ({"space": {"seed": {"min": 1, "max": 9}}}, "give a list of values"),
        ({"space": {"learning_rate": {**RATES, "lag": True}}}, "unknown key; a range has min, max, log, points"),
        ({"space": {"learning_rate": 3}}, "must be a list of values, or a range"),
        ({"space": {"learning_rate": []}}, "must be a list of 1 or more"),
        ({"space": {"learning_rate": [1e-3, 1e-4, 1e-3]}}, "space.learning_rate: has 0.001 more than once"),
        ({"space": {"weight_decay": [0, 0]}}, "space.weight_decay: has 0 more than once"),
        ({"space": {"lr_scheduler_type": ["linear", "cosin"]}}, "did you mean cosine?"),
        ({"space": {"train.learning_rate": RATES, "learning_rate": RATES}}, "sets the same: drop one of them"),
        ({"space": {"warmup_ratio": [0.1], "warmup_steps": [5]}}, "sets the same: drop one of them"),
        ({"space": {"seq_len": [64, 128]}}, "so this field cannot vary"),
        ({"space": {"global_batch_size": {"min": 8, "max": 64}}}, "needs an engine: give a list"),
        ({"space": {"bf16": [True, False], "global_batch_size": [1, 2, 3, 4, 5]}}, "have 10 combinations"),
        ({"space": {"global_batch_size": [0, 2]}}, "space.global_batch_size: must be 1 or more"),
        (
            {"base": {**BASE, "train": {"max_steps": 9}}, "space": {"data.train.1.weight": [1, 2]}},
            "base.data.train has 1 source, counted from 0",
        ),
        ({"space": {"data.train.0.weight": [1, 2]}}, "give base.train.max_steps"),
        ({"space": {"bf16": [True, False], "fp16": [True, False]}}, "bf16 True, fp16 True: "),
        (
            {"space": {"global_batch_size": [8, 16], "gradient_accumulation_steps": [1, 8]}},
            "global_batch_size 8, gradient_accumulation_steps 1: ",
        ),
        (
            {"base": {**BASE, "train": {"max_steps": 9}}, "space": {"global_batch_size": [8, 16]}},
            "give num_train_epochs instead of max_steps",
        ),
        ({"space": {"seed": [1, 2]}, "seeds": 3}, "space has seed too: drop one of them"),
        ({"space": {"max_steps": [10, 20]}}, "trials of different lengths cannot be compared"),
        ({"metric": "accuracy"}, "metric is accuracy, but base.eval.metrics has loss"),
        ({"scheduler": "pbt"}, "population-based training changes values within a run"),
        ({"budget": {}}, "needs one of trials, runs, tokens, gpu_hours, minutes"),
        ({"budgt": {"trials": 3}}, "did you mean budget?"),
        ({"rungs": [0.5, 0.25]}, "each greater than the one before"),
        ({"rungs": []}, "rungs is empty"),
        ({"prior": 3}, "prior: must be fields with their values"),
        ({"base": "nope.json"}, "base: cannot read"),
        ({"base": [1]}, "base: must be a section"),
        ({"base": {**BASE, "data": {"train": "a", "format": "classification"}}}, "no held-out samples"),
        ({"base": {**BASE, "train": {"learning_rate": -1}}}, "base.train.learning_rate: must be greater than 0"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        sweep_of(tmp_path, **{"base": BASE, **fields})
    assert said in str(caught.value)


def test_the_documents_list_every_field_that_may_vary() -> None:
    page = (Path(__file__).parents[4] / "docs/search.md").read_text()
    section = page.partition("## What may vary\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w.]+)`", section))
    fields = (VARYING | ENGINE) - {"train.max_steps", "train.num_train_epochs"}
    assert not {name for name in fields if not named & {name, name.partition(".")[2]}}, "of VARYING and ENGINE"


def test_without_a_base_the_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("kind: sweep\n")
    with pytest.raises(SpecError, match="base: is missing"):
        load_sweep(str(tmp_path / "sweep.yaml"))


def test_who_wants_one_job_is_told_that_this_is_a_sweep(tmp_path: Path) -> None:
    sweep_of(tmp_path, BASE)
    with pytest.raises(SpecError, match="runs the sweep"):
        load_spec(str(tmp_path / "sweep.json"))
    (tmp_path / "job.json").write_text(json.dumps(BASE))
    assert load_sweep(str(tmp_path / "job.json")) is None
    assert isinstance(load_spec(str(tmp_path / "job.json")), Spec)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": {"trials": 99}, "num_gangs": 3, "then": "nothing"}, None),
        ({"space": {"learning_rate": {"min": 1e-6, "max": 1e-4}}}, None),
        (
            {"space": {"learning_rate": RATES, "warmup_ratio": [0.1]}},
            "space: only one of the two specs has warmup_ratio",
        ),
        ({"space": {"learning_rate": [1e-4]}, "algorithm": "grid"}, "algorithm: auto -> grid"),
        ({"metric": "loss", "mode": "max"}, "mode: None -> max"),
        ({"base": {**BASE, "seed": 7}}, "base.seed: 42 -> 7"),
    ],
)
def test_a_sweep_goes_on_with_another_budget_and_not_as_another_search(
    tmp_path: Path, changes: dict[str, Any], said: str | None
) -> None:
    fields: dict[str, Any] = {"base": BASE, "space": {"learning_rate": RATES}}
    paths = open_run(sweep_of(tmp_path, **fields))
    now = sweep_of(tmp_path, **{**fields, **changes})
    if said is None:
        check_sweep_resumable(paths, now)
        return
    with pytest.raises(SpecError, match="could not be compared") as caught:
        check_sweep_resumable(paths, now)
    assert said in str(caught.value)


def test_one_run_is_no_sweep_to_go_on_with(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, BASE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/spec.json").write_bytes(dump_spec(sweep.base))
    with pytest.raises(InputError, match="is not a sweep"):
        check_sweep_resumable(JobPaths(str(tmp_path / "run")), sweep)


def test_below_space_a_dotted_name_is_one_key_of_an_override() -> None:
    document = parse("space: {learning_rate: {min: 1.0e-4, max: 1.0e-3}}", "sweep.yaml")
    for text in ("space.lora.rank=[2, 4]", "space.learning_rate.max=2e-3", "space.train.warmup_ratio.points=3"):
        override(document, text)
    assert not document.problems
    assert document.value["space"] == {
        "learning_rate": {"min": 1e-4, "max": 2e-3}, "lora.rank": [2, 4], "train.warmup_ratio": {"points": 3},
    }  # fmt: skip
