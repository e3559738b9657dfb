"""What becomes of a run under torchrun in which one rank fails."""

from __future__ import annotations

import pathlib
import threading

import pytest

from jobs.data.preparation.prepare import prepare
from jobs.drivers.finetune.torchrun_driver import FailureWatch
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.gangs import torchrun


def test_a_process_ends_once_a_rank_has_reported_a_failure(tmp_path: pathlib.Path) -> None:
    paths, ended = JobPaths(str(tmp_path)), threading.Event()
    with FailureWatch(paths, ended.set, every_s=0.01, grace_s=0.01):
        assert not ended.wait(0.1)
        pathlib.Path(paths.failures).mkdir()
        pathlib.Path(paths.failure(1)).write_text("{}")
        assert ended.wait(60)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others_within_seconds_and_the_outcome_is_written(tmp_path: pathlib.Path) -> None:
    """Under torchrun, where no driver looks on, and rank 0 waits in a collective."""
    tiny.save_model(tmp_path / "bert", "bert")
    tiny.write_labelled(tmp_path / "labelled.jsonl", 60, 3)
    spec = tiny.spec_of(
        tmp_path / "runs", tmp_path / "bert", tmp_path / "labelled.jsonl", classify=True, train__max_steps=30,
        data__eval_fraction=0.3, eval__metrics=["tests.support.stuck_on_rank_0:zero"],
    )  # fmt: skip
    prepare(spec, spec.model.path, engine="plain", say=lambda text: None)
    (tmp_path / "job.json").write_bytes(dump_spec(spec))
    done = torchrun(2, "-m", "jobs.finetune", str(tmp_path / "job.json"), timeout=400)  # rank 0 hangs for 600 s
    assert done.returncode != 0
    (root,) = [run for run in (tmp_path / "runs").iterdir() if (run / "spec.json").exists()]
    outcome = read_outcome(JobPaths(str(root)))
    assert outcome is not None and outcome.status is Status.FAILED and "only here" in str(outcome.reason)
    assert "only here" in done.stdout + done.stderr
