"""What a comparison of methods may say, and what is said of one that is wrong, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.comparison.checking import sweeps_to_plan
from jobs.search.rules.checking import check_search, sweep_warnings
from jobs.spec.compare import CompareSpec
from jobs.spec.load import dump_spec, load_job_spec, load_spec, load_sweep, load_to_run, spec_of
from jobs.spec.sweep import Budget, SweepSpec

BASE: dict[str, Any] = {
    "model": {"path": "./model", "task": "causal-lm"},
    "data": {"train": "rows.jsonl", "format": "text", "eval_fraction": 0.1},
    "train": {"learning_rate": 1e-4, "max_steps": 20},
    "storage_path": "runs",
}
RANKS = [{"name": f"lora-r{rank}", "method": "lora", "lora": {"rank": rank}} for rank in (4, 16)]


def compare_of(folder: Path, *overrides: str, **fields: Any) -> CompareSpec:
    (folder / "base.json").write_text(json.dumps(BASE))
    written = {"kind": "compare", "base": "base.json", "methods": ["full", "lora"], **fields}
    (folder / "compare.json").write_text(json.dumps(written, indent=1))
    spec = load_to_run(str(folder / "compare.json"), overrides)
    assert isinstance(spec, CompareSpec)
    return spec


def sweeps_of(spec: CompareSpec) -> dict[str, SweepSpec]:
    return {one.name: spec.sweep_of(one) for one in spec.methods}


def test_each_method_is_a_sweep_of_the_same_job_and_budget(tmp_path: Path) -> None:
    spec = compare_of(tmp_path, methods=["full", *RANKS, "prompt"], budget={"runs": 4.0}, seeds=3, name="reviews")
    sweeps = sweeps_of(spec)
    assert list(sweeps) == ["full", "lora-r4", "lora-r16", "prompt"]
    assert [one.base.method.kind for one in sweeps.values()] == ["full", "lora", "lora", "prompt"]
    assert [sweeps[name].base.lora.rank for name in ("lora-r4", "lora-r16")] == [4, 16]
    for name, sweep in sweeps.items():
        assert sweep.name == f"reviews-{name}" and sweep.budget == Budget(runs=4.0) and sweep.seeds == 3
        assert sweep.base.data == spec.base.data and sweep.base.train.max_steps == 20


def test_a_rate_of_the_base_is_for_its_own_method_only(tmp_path: Path) -> None:
    sweeps = sweeps_of(compare_of(tmp_path))
    assert sweeps["full"].base.train.learning_rate == 1e-4
    assert "learning_rate" not in sweeps["lora"].base.train.model_fields_set


def test_settings_of_the_bases_method_are_those_of_the_method_that_gives_none(tmp_path: Path) -> None:
    base = {**BASE, "method": "lora", "lora": {"rank": 8, "alpha": 8}}
    sweeps = sweeps_of(compare_of(tmp_path, base=base, methods=["full", "lora", RANKS[0]]))
    assert sweeps["lora"].base.lora.rank == 8 and sweeps["lora"].base.train.learning_rate == 1e-4
    assert sweeps["lora-r4"].base.lora.rank == 4 and sweeps["full"].base.method.kind == "full"


def test_a_name_of_a_method_is_enough(tmp_path: Path) -> None:
    spec = compare_of(tmp_path, methods=[{"name": "full"}, {"method": "lora"}])
    assert [(one.name, one.method.kind) for one in spec.methods] == [("full", "full"), ("lora", "lora")]


def test_it_is_what_it_was_after_it_was_written_and_read(tmp_path: Path) -> None:
    spec = compare_of(tmp_path, "base.train.max_steps=7", "budget.trials=3", methods=["full", *RANKS])
    assert spec.base.train.max_steps == 7 and spec.budget.trials == 3
    (tmp_path / "again.json").write_bytes(dump_spec(spec))
    assert load_to_run(str(tmp_path / "again.json")) == spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": ["full"]}, "methods: must be a list of 2 or more"),
        ({"methods": ["lora", "lora"]}, "methods has 2 with the name lora: give each a name"),
        ({"methods": ["full", "lorra"]}, 'must be full, lora or prompt, but is "lorra"; did you mean lora?'),
        ({"methods": ["full", {"name": "mine"}]}, "methods.1.method: is missing"),
        ({"methods": ["full", {"method": "lora", "data": {"train": "other.jsonl"}}]}, "unknown key; it has method"),
        ({"methods": ["full", {"method": "lora", "budget": {"runs": 9}}]}, "same for all methods of a comparison"),
        ({"methods": ["full", {"method": "lora", "train": {"max_steps": 9}}]}, "same for all methods of a comparison"),
        ({"methods": ["full", {"method": "lora", "lora": {"rang": 4}}]}, "unknown key; did you mean rank?"),
        ({"methods": ["full", {"method": "lora", "lora": 16}]}, "a section with the keys rank, alpha"),
        ({"methods": ["lora", {"method": "full", "lora": {"rank": 4}}]}, "methods: full: lora is given, but method is"),
        ({"methods": ["full", {"method": "lora", "name": "../up"}]}, "does not fit"),
        ({"base": {**BASE, "data": {"train": "rows.jsonl", "format": "text"}}}, "no held-out samples"),
        ({"prior": {"learning_rate": 1e-3}}, "it is for kind: sweep, and this spec is of kind compare"),
        ({"space": {"learning_rate": {"min": 1e-3}}}, "space.learning_rate.max: is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        compare_of(tmp_path, **fields)
    assert said in str(caught.value) and "compare.json:" in str(caught.value)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_through_a_queue_the_searches_begin_where_they_do_without_one(tmp_path: Path, method: str) -> None:
    """A queue reads what was written of the spec, and a rate that was left out is not the default rate."""
    base = {**BASE, "method": method, "train": {"max_steps": 20}}
    spec = compare_of(tmp_path, base=base, methods=["full", *RANKS])
    queued = spec_of(json.loads(spec_of(spec.model_dump(mode="json")).model_dump_json()))
    assert isinstance(queued, CompareSpec)
    assert [one.prior for one in sweeps_to_plan(queued).values()] == [
        one.prior for one in sweeps_to_plan(spec).values()
    ]
    rates = {name: sweep.base.train.learning_rate for name, sweep in sweeps_to_plan(queued).items()}
    assert rates["lora-r4"] == pytest.approx(10 * rates["full"])


def test_what_it_asks_of_the_queue_is_what_its_base_asks(tmp_path: Path) -> None:
    base = {**BASE, "queue": {"priority": 3}}
    assert compare_of(tmp_path, base=base).queue.priority == 3
    assert compare_of(tmp_path, base=base, queue={"priority": 5}).queue.priority == 5


def test_a_field_of_its_base_can_be_varied(tmp_path: Path) -> None:
    few, many = compare_of(tmp_path, name="mine").vary({"base.train.max_steps": [5, 50]})
    assert (few.base.train.max_steps, many.base.train.max_steps) == (5, 50)
    assert (few.name, many.queue.labels) == ("mine-ms5", {"base.train.max_steps": "50"})


def test_mistakes_of_its_searches_are_found_without_files_and_told_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        check_search(compare_of(tmp_path, space={"lr": [1e-4]}, budget={"runs": 0.2}))
    assert [mistake.field for mistake in caught.value.mistakes] == ["space.lr", "budget"]


def test_a_runtime_that_is_too_short_for_the_minutes_of_all_methods_is_a_warning(tmp_path: Path) -> None:
    enough = compare_of(tmp_path, budget={"minutes": 10}, queue={"max_runtime_s": 1200})
    assert not [line for line in sweep_warnings(enough) if "max_runtime_s" in line]
    short = compare_of(tmp_path, budget={"minutes": 10}, queue={"max_runtime_s": 1100})
    (line,) = [line for line in sweep_warnings(short) if "max_runtime_s" in line]
    assert "ends the comparison before budget.minutes (10 for each method)" in line and "at least 1200" in line


def test_the_base_may_name_only_the_least_number_of_workers(tmp_path: Path) -> None:
    spec = compare_of(tmp_path, base={**BASE, "resources": {"min_workers": 1}})
    assert spec.job_of(spec.methods[0]).resources == spec.base.resources


def test_it_is_read_as_any_job_but_is_no_single_one(tmp_path: Path) -> None:
    spec, path = compare_of(tmp_path), str(tmp_path / "compare.json")
    assert load_job_spec(path) == spec
    with pytest.raises(SpecError, match=f"of kind compare, and a single job is needed here: fleetune run {path}"):
        load_spec(path)
    assert load_sweep(path) is None
