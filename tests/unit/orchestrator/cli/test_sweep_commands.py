"""Which directories the commands of sweeps take."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from cluster.errors import InputError
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths, comparison_root
from jobs.run.record import open_run
from orchestrator.cli import run_argument
from orchestrator.cli.commands.sweep import _is_active, trials_of
from orchestrator.cli.run_argument import check_not_queued
from orchestrator.queue.states import State
from tests.support.jobviews import job
from tests.unit.jobs.spec.test_compare import compare_of


@pytest.fixture
def compared(tmp_path: Path) -> JobPaths:
    """The directory of a comparison, with those of its sweeps."""
    spec = compare_of(tmp_path)
    paths = open_run(spec, str(tmp_path / "runs/compare-1"))
    for method, sweep in zip(spec.methods, spec.sweeps, strict=True):
        open_run(sweep, paths.method(method.name))
    return paths


def test_of_a_comparison_its_sweeps_are_named(compared: JobPaths, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        trials_of(compared.root, None)
    said = f"{compared.root} is a comparison: fleetune show {compared.root}. Its sweeps are "
    assert str(caught.value) == said + f"{compared.root}/methods/full, {compared.root}/methods/lora"
    assert trials_of(compared.method("lora"), None).root == compared.method("lora")
    run = open_run(compare_of(tmp_path).base, str(tmp_path / "runs/run-1"))
    with pytest.raises(InputError, match=r"run-1 is a run, not a sweep: fleetune show"):
        trials_of(run.root, None)


def test_a_sweep_is_active_while_its_queued_comparison_will_go_on_with_it(
    compared: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = job("compare-1", State.QUEUED, run=compared.root)
    monkeypatch.setattr(run_argument, "_job_meant", lambda given: waits if given == compared.name else None)
    full = trials_of(compared.method("full"), None)
    assert _is_active(full)
    write_outcome(JobPaths(full.root), Outcome(status=Status.SUCCEEDED, ended_at=datetime.datetime.now(datetime.UTC)))
    assert not _is_active(full)
    with pytest.raises(InputError, match="belongs to job compare-1 of the queue, which has not ended"):
        check_not_queued(full.root)
    assert _is_active(trials_of(compared.method("lora"), None))


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/runs/compare-1/methods/full", "/runs/compare-1"),
        ("s3://bucket/runs/compare-1/methods/full/", "s3://bucket/runs/compare-1"),
        ("/runs/sweep-1", None),
        ("/runs/compare-1/methods/", None),
        ("sweep-1", None),
    ],
)
def test_the_comparison_of_a_sweep_follows_from_its_path(root: str, expected: str | None) -> None:
    assert comparison_root(root) == expected
