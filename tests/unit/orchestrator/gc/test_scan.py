"""What a scan of a storage path tells of its runs."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.run.outcome import Outcome, Status
from orchestrator.gc.scan import look

PARENT = "parent-20261001-120000-0001"


def test_a_sweeps_own_file_whose_base_is_a_path_stops_no_scan(tmp_path: Path) -> None:
    (tmp_path / PARENT).mkdir()
    (tmp_path / PARENT / "spec.json").write_text('{"kind": "sweep", "base": "job.yaml"}')
    assert [(run.name, run.starts_from) for run in look(str(tmp_path), time.time()).runs] == [(PARENT, None)]


@pytest.mark.parametrize("kind", ["finetune", "sweep", "compare"])
def test_a_run_names_the_run_whose_model_it_starts_from(tmp_path: Path, kind: str) -> None:
    job = {"model": {"path": str(tmp_path / PARENT / "model")}}
    child: dict[str, Any] = job if kind == "finetune" else {"kind": kind, "base": job}
    for name, spec in ((PARENT, {"model": {"path": "/m"}}), ("child-20261128-120000-0002", child)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.json").write_text(json.dumps(spec))
    runs = {run.name: run.starts_from for run in look(str(tmp_path), time.time()).runs}
    assert runs == {PARENT: None, "child-20261128-120000-0002": PARENT}


@pytest.mark.parametrize(
    ("spec", "needs"),
    [
        ({}, False),
        ({"method": {"kind": "full"}}, False),
        ({"method": {"kind": "lora"}}, True),
        ({"method": "prompt"}, True),
        ({"kind": "sweep", "base": {"method": "lora"}}, True),
        ({"kind": "compare", "base": {}}, True),
    ],
)
def test_a_run_needs_its_base_if_it_trained_an_adapter_or_may_be_resumed(
    tmp_path: Path, spec: dict[str, Any], needs: bool
) -> None:
    for name, status in (("done", "succeeded"), ("stopped", "interrupted")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.json").write_text(json.dumps(spec))
        (tmp_path / name / "outcome.json").write_text(
            Outcome(status=Status(status), ended_at=datetime.datetime.now(datetime.UTC)).model_dump_json()
        )
    assert {run.name: run.needs_base for run in look(str(tmp_path), time.time()).runs} == {
        "done": needs,
        "stopped": True,
    }


def test_the_data_of_each_method_of_a_comparison_and_of_a_final_run_is_in_use(tmp_path: Path) -> None:
    for part, data in {
        "sweep": "a",
        "sweep/final": "b",
        "sweep/0001": None,  # a trial: its data is that of the sweep
        "compare": None,
        "compare/methods/full": "c",
        "compare/methods/prompt": None,
        "compare/methods/full/final-2": "d",
    }.items():
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / "spec.json").write_text("{}")
        if data is not None:
            (tmp_path / part / "manifest.json").write_text(json.dumps({"data_fingerprint": data}))

    def facts() -> dict[str, tuple[set[str], bool]]:
        return {run.name: (set(run.prepared), run.may_prepare) for run in look(str(tmp_path), time.time()).runs}

    assert facts() == {"sweep": ({"a", "b"}, False), "compare": ({"c", "d"}, True)}
    (tmp_path / "compare/methods/prompt/manifest.json").write_text(json.dumps({"data_fingerprint": "e"}))
    assert facts()["compare"] == ({"c", "d", "e"}, False)
