"""`fleetune submit --sweep`: paths are relative to the spec's file, as those of --set, and mistakes name the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError, SpecError
from jobs.spec.checking.lines import Mark
from jobs.spec.finetune import Spec
from jobs.spec.sweep import SweepSpec
from orchestrator.cli.submission import _vary_all
from orchestrator.client.spec_names import Named, load_named, place_errors

JOB = "model: {path: org/model, task: causal-lm}\ndata: {train: d.jsonl, format: text, eval_fraction: 0.1}\n"


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "specs/jobs").mkdir(parents=True)
    (tmp_path / "specs/job.yaml").write_text(JOB)
    (tmp_path / "specs/jobs/job.yaml").write_text(JOB)
    (tmp_path / "specs/sweep.yaml").write_text("kind: sweep\nbase: jobs/job.yaml\n")
    (tmp_path / "specs/org/model").mkdir(parents=True)  # of the name of the model on the hub
    monkeypatch.chdir(tmp_path)
    return tmp_path / "specs"


def swept(path: str, *options: str) -> list[Named]:
    return _vary_all(load_named([path]), options)


def test_paths_are_relative_to_the_file_of_the_spec(specs: Path) -> None:
    found = [one.spec for one in swept("specs/job.yaml", "data.eval=t1.csv,/t2.csv")]
    evals = [one.data.eval for one in found if isinstance(one, Spec) and one.data.eval]
    assert [one[0].path for one in evals] == [str(specs / "t1.csv"), "/t2.csv"]


def test_paths_in_the_base_of_a_sweep_are_relative_to_the_file_of_the_base(specs: Path) -> None:
    (one,) = swept("specs/sweep.yaml", "base.data.train=t1.csv")
    assert isinstance(one.spec, SweepSpec)
    assert one.spec.base.data.train[0].path == str(specs / "jobs/t1.csv")
    assert one.spec.base.model.path == "org/model"
    (one,) = _vary_all(load_named(["specs/sweep.yaml"], ["base=job.yaml"]), ["base.storage_path=here"])
    assert isinstance(one.spec, SweepSpec) and one.spec.base.storage_path == str(specs / "here")


@pytest.mark.parametrize("option", ["seed=-1", "lr=1", "data.eval=3", "train.warmup_ratio=2"])
def test_a_mistake_in_an_option_is_placed_there(specs: Path, option: str) -> None:
    with pytest.raises(SpecError, match=r"^--sweep: "):
        swept("specs/job.yaml", option)


def test_a_mistake_that_is_found_later_is_placed_at_the_option_or_in_the_file(specs: Path) -> None:
    (one,) = swept("specs/job.yaml", "data.train=[[x.csv, y.csv]]")
    for field, place in (("data.train[1]", "--sweep"), ("data.format", "specs/job.yaml:2")):
        with pytest.raises(DataError) as caught, place_errors(one):
            raise DataError.at(field, "wrong")
        assert str(caught.value).startswith(f"{place}: {field}: ")
    assert one.marks["data.format"] == Mark("specs/job.yaml", 2)
