"""`model.path: run:NAME` and `working_dir`, from the spec to the moment before a run."""

from __future__ import annotations

import datetime
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, InputError, SpecError
from jobs.drivers.finetune.begin import begin_run
from jobs.preflight.validate import validate
from jobs.run.checkpoints import commit_path
from jobs.run.find import export_source, find_run, with_model_of_run
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths, made_from
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec, spec_of
from jobs.spec.references import run_named
from jobs.storage import files as storage


def save_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").touch()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")


def make_run(root: Path, name: str, *, exported: bool, method: str = "full") -> Path:
    run = root / "runs" / name
    run.mkdir(parents=True)
    of_run = {
        "model": {"path": "/base", "task": "causal-lm"},
        "data": {"train": "/d.jsonl", "format": "text"},
        "method": method,
    }
    (run / "spec.json").write_text(json.dumps(of_run))
    if exported:
        save_model(run / "model")
    return run


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": f"row {n}"}) for n in range(3)))
    return {
        "model": {"path": "run:first", "task": "causal-lm"},
        "data": {"train": str(tmp_path / "d.jsonl"), "format": "text"},
        "storage_path": str(tmp_path / "runs"),
    }


def spec(values: dict[str, Any], **changes: Any) -> Spec:
    made = spec_of({**values, **changes})
    assert isinstance(made, Spec)
    return made


OLD, NEW = "texts-20261124-101010-abcd", "texts-20261125-101010-abcd"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("texts", f"'texts' may mean 2 runs: {OLD}, {NEW}. Give more of the name"),
        ("txets", f"no run 'txets' under .*; did you mean {NEW}\\?"),
        ("texts-20261126", f"no run 'texts-20261126' under .*; did you mean {NEW}\\?"),
        ("runs/texts", f"runs/texts is not a run: there is no spec.json in it; did you mean {OLD}, {NEW}\\?"),
        ("runs/txets", f"runs/txets is not a run: there is no spec.json in it; did you mean {NEW}\\?"),
        ("other", f"no run 'other' under .*: existing runs are {OLD}, {NEW}. Jobs of a queue"),
    ],
)
def test_who_names_no_single_run_is_told_which_are_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    for name in (OLD, NEW):
        make_run(tmp_path, name, exported=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        find_run(given, str(tmp_path / "runs"))
    assert find_run(f"{OLD}/", str(tmp_path / "runs")) == str(tmp_path / "runs" / OLD)


def test_a_run_s_name_stays_as_it_is_until_the_run_begins(values: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path, "first-20261124-101010-abcd", exported=True)
    (tmp_path / "job.json").write_text(json.dumps(values))
    loaded = load_spec(str(tmp_path / "job.json"))
    assert loaded.model.path == "run:first"
    begun = begin_run(loaded)
    assert begun.spec.model.path == str(run / "model")
    assert load_spec(begun.paths.spec).model.path == str(run / "model")


def test_a_run_without_a_model_says_how_to_export_one(values: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path, "first-1", exported=False)
    with pytest.raises(DataError, match=f"run first-1 has no model.*`fleetune export {run}`"):
        with_model_of_run(spec(values))
    with pytest.raises(DataError, match="has no model"):
        validate(spec(values))


def test_a_run_that_has_trained_an_adapter_has_a_model_once_it_is_merged(
    values: dict[str, Any], tmp_path: Path
) -> None:
    run = make_run(tmp_path, "first-1", exported=False, method="lora")
    with pytest.raises(DataError, match=f"has trained an adapter.*`fleetune export {run} --merged`"):
        with_model_of_run(spec(values))
    (run / "merged").mkdir()
    (run / "merged/config.json").write_text("{}")
    assert with_model_of_run(spec(values)).model.path == str(run / "merged")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_of_an_earlier_step_is_refused_once_its_run_has_gone_on(
    values: dict[str, Any], tmp_path: Path, method: str
) -> None:
    run = make_run(tmp_path, "first-1", exported=False, method=method)
    paths = JobPaths(str(run))
    model = paths.merged if method == "lora" else paths.model

    def commit(step: int) -> None:
        storage.write_bytes(commit_path(paths, step), f"the checkpoint of step {step}".encode())

    def export() -> None:
        source = export_source(paths)
        assert source is not None
        storage.write_bytes(made_from(model), source.encode())

    commit(1)
    storage.write_bytes(storage.join(model, "config.json"), b"{}")
    again = (
        f"may have been resumed since its adapter was merged. `fleetune export {run} --merged` merges it again"
        if method == "lora"
        else f"may have been resumed since its model was exported. `fleetune export {run}` exports it again"
    )
    with pytest.raises(DataError, match=re.escape(again)):  # not marked
        with_model_of_run(spec(values))
    export()
    assert with_model_of_run(spec(values)).model.path == model
    commit(2)
    with pytest.raises(DataError, match=re.escape(again)):
        with_model_of_run(spec(values))
    export()
    now = datetime.datetime.now(datetime.UTC)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, step=3, model_path=paths.model, ended_at=now))
    if method == "lora":
        with pytest.raises(DataError, match=re.escape(again)):
            with_model_of_run(spec(values))
        export()
    storage.remove_dir(paths.checkpoints)  # as `fleetune gc` does
    assert with_model_of_run(spec(values)).model.path == model


def test_a_run_that_has_trained_a_prompt_is_not_merged_but_its_base_is_named(
    values: dict[str, Any], tmp_path: Path
) -> None:
    make_run(tmp_path, "first-1", exported=False, method="prompt")
    with pytest.raises(DataError, match=r"a prompt, which cannot be merged into a model\..*model\.path: /base"):
        with_model_of_run(spec(values))


def test_a_run_that_is_not_there_and_other_problems_come_at_once(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        validate(spec(values, eval={"metrics": ["losss"]}, working_dir=str(tmp_path / "gone")))
    for part in ("no run 'first'", "did you mean loss?", f"working_dir {tmp_path / 'gone'}: No such file"):
        assert part in str(caught.value)


@pytest.mark.parametrize("path", ["run:", "run:a/b", "run:../a", "run:-a", "run:a b", "run://host/a", "run:a\n"])
def test_what_is_no_name_is_refused_when_the_spec_is_read(values: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError, match="after run: comes the name of a run or job"):
        spec({**values, "model": {"path": path, "task": "causal-lm"}})


@pytest.mark.parametrize("path", ["/m", "org/name", "s3://b/run:x", "./run:x", "runs"])
def test_no_other_path_is_taken_for_a_run(path: str) -> None:
    assert run_named(path) is None
    assert run_named("run:name") == "name" and not storage.is_url("run:name")


def test_modules_of_the_working_dir_are_found(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back, at the end
    monkeypatch.setattr(sys, "path", list(sys.path))
    make_run(tmp_path, "first-1", exported=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "metrics_of_mine.py").write_text("def score(predictions, label_ids):\n    return 1.0\n")
    wanted = {"eval": {"metrics": ["metrics_of_mine:score"]}}
    with pytest.raises(SpecError, match="no module metrics_of_mine"):
        validate(spec(values, **wanted))
    validate(spec(values, **wanted, working_dir=str(mine)))
    assert os.getcwd() == str(mine) and sys.path[0] == str(mine)
