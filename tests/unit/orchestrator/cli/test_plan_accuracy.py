"""`fleetune plan --accuracy` compares the plans of past runs with what the runs measured."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import read_check
from jobs.run.run_plan import RunPlan, write_plan
from jobs.storage import files as storage
from orchestrator.cli.app import app

GIB = 2**30


def make_run(folder: Path, number: int, predicted_gib: float, *seconds: float, is_bound: bool = False) -> None:
    """A run with a plan of 2 s a step, or a bound, whose steps took so many seconds and held 2 GiB."""
    paths = JobPaths(str(folder / f"a-20261124-11590{number}-0001"))
    storage.write_bytes(paths.spec, json.dumps({"model": {"path": "/m"}, "data": {"train": "/d"}}).encode())
    plan = RunPlan(
        machines="8xH100-80", precision="bf16", parameters=10, memory={}, total_bytes=int(predicted_gib * GIB),
        room_bytes=80 * GIB, step_s=2.0, tokens_per_s=1.0,
    )  # fmt: skip
    bound = RunPlan(version=2, machines="2xCPU", precision="fp32", is_bound=True, total_bytes=plan.total_bytes)
    write_plan(paths, bound if is_bound else plan)
    records = [
        {"step": n, "loss": 1.0, "step_time_s": s, "max_memory_bytes": 2 * GIB} for n, s in enumerate(seconds, 1)
    ]
    content = "".join(json.dumps(one) + "\n" for one in records).encode()
    storage.write_bytes(storage.join(paths.metrics, f"{1:020d}-000000-0.jsonl"), content)
    if seconds:
        now = datetime.datetime.now(datetime.UTC)
        write_outcome(paths, Outcome(status=Status.SUCCEEDED, ended_at=now, plan=read_check(paths)))


def test_the_errors_of_memory_and_of_the_step_time_after_the_first_steps_are_summed_up(tmp_path: Path) -> None:
    make_run(tmp_path, 1, 2.1, 9.0, 1.0, 1.0, 1.25, 1.25)
    make_run(tmp_path, 2, 1.8, 9.0, 1.0, 1.0, 1.0)
    make_run(tmp_path, 3, 3.0)
    shown = CliRunner().invoke(app, ["plan", "--accuracy", "--storage", str(tmp_path), "--json"])
    found = json.loads(shown.stdout)
    assert len(found["runs"]) == 3
    assert (found["memory"]["runs"], found["step_after_first_steps"]["runs"]) == (2, 2)
    assert found["memory"]["median"] == pytest.approx(0.075) and found["memory"]["worst"] == pytest.approx(0.1)
    assert found["step_after_first_steps"]["median"] == pytest.approx(0.1)
    page = CliRunner().invoke(app, ["plan", "--accuracy", "--storage", str(tmp_path)])
    assert "memory: median 7.5 %, worst 10.0 % of 2 runs" in page.stdout
    assert "step time, estimated after three steps: median 10.0 %, worst 20.0 % of 2 runs" in page.stdout
    assert "+5.0 %" in page.stdout and "-10.0 %" in page.stdout and "-20.0 %" in page.stdout


def test_a_bound_has_no_error_but_may_be_wrong(tmp_path: Path) -> None:
    make_run(tmp_path, 1, 2.5, 9.0, 1.0, 1.0, 1.0, is_bound=True)
    make_run(tmp_path, 2, 1.5, 9.0, 1.0, 1.0, 1.0, is_bound=True)
    make_run(tmp_path, 3, 1.0, is_bound=True)
    shown = CliRunner().invoke(app, ["plan", "--accuracy", "--storage", str(tmp_path), "--json"])
    found = json.loads(shown.stdout)
    assert len(found["runs"]) == 3 and found["memory"]["runs"] == found["step"]["runs"] == 0
    page = CliRunner().invoke(app, ["plan", "--accuracy", "--storage", str(tmp_path)]).stdout
    assert "bounds of small jobs: 1 of 2 runs took at most that" in page and "<= 2.50  2.00" in page
    show = CliRunner().invoke(app, ["show", str(tmp_path / "a-20261124-115901-0001")]).stdout
    assert "at most 2.50 GiB predicted, 2.00 measured\n" in show
    show = CliRunner().invoke(app, ["show", str(tmp_path / "a-20261124-115902-0001")]).stdout
    assert "at most 1.50 GiB predicted, 2.00 measured (above that bound, which leaves out what reads data" in show


def test_where_no_run_has_a_plan_it_says_why(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", "--accuracy", "--storage", str(tmp_path)])
    assert shown.exit_code == 2 and "has a plan: runs of earlier releases" in shown.output
