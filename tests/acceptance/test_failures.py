"""What becomes of a run that goes wrong."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from jobs.journal import read_journal
from jobs.outcome import Status
from jobs.paths import JobPaths
from tests.acceptance.conftest import FLEETUNE, environment, fleetune, newest_run, outcome_of
from tests.support.gangs import ROOT

WriteSpec = Callable[..., pathlib.Path]


@pytest.mark.slow
def test_a_mistake_of_the_user_is_tried_once_and_told_in_one_message(
    write_spec: WriteSpec, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    calls = tmp_path / "calls"
    spec = write_spec(
        "bert", "labelled.jsonl", classify=True, train__max_steps=3, data__eval_fraction=0.3,
        eval__metrics=["tests.support.own_metrics:broken"],
    )  # fmt: skip
    done = fleetune("run", spec, BROKEN_METRIC_CALLS=str(calls))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no such column in my table" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert calls.read_text().count("called") == 1
    paths = newest_run(workshop)
    assert outcome_of(paths).status is Status.FAILED
    assert "Traceback" in pathlib.Path(paths.log("rank-0")).read_text()


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_run_at_once(write_spec: WriteSpec, workshop: pathlib.Path) -> None:
    """The other rank waits in a collective by then; it must not wait for its time-out of half an hour."""
    spec = write_spec(
        "bert", "labelled.jsonl", classify=True, train__max_steps=30, data__eval_fraction=0.3,
        eval__metrics=["tests.support.broken_on_rank_1:zero"],
    )  # fmt: skip
    done = fleetune("run", spec, timeout=180)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "only here" in done.stdout + done.stderr
    assert len(read_journal(newest_run(workshop).metrics)) <= 1


@pytest.fixture
def running(write_spec: WriteSpec, workshop: pathlib.Path) -> Iterator[tuple[subprocess.Popen[str], JobPaths]]:
    """A run that is past its tenth step, with checkpoints every five."""
    spec = write_spec(
        train__per_device_train_batch_size=2, train__global_batch_size=8, train__max_steps=120, checkpoint__save_steps=5
    )
    before = set((workshop / "runs").glob("run-*")) if (workshop / "runs").exists() else set()
    process = subprocess.Popen(
        [str(FLEETUNE), "run", str(spec)], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 150
        while True:
            found = set((workshop / "runs").glob("run-*")) - before
            if found and len(read_journal(f"{next(iter(found))}/metrics")) >= 10:
                break
            assert time.monotonic() < deadline and process.poll() is None
            _wait(0.5)
        yield process, JobPaths(str(next(iter(found))))
    finally:
        process.kill()
        process.wait()


def _wait(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_from_which_a_model_can_be_exported(
    running: tuple[subprocess.Popen[str], JobPaths], tmp_path: pathlib.Path
) -> None:
    process, paths = running
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    outcome = outcome_of(paths)
    assert outcome.status is Status.INTERRUPTED and 10 <= outcome.step < 120
    assert (pathlib.Path(paths.checkpoint(outcome.step))).is_dir()
    assert not pathlib.Path(paths.model).exists()
    exported = fleetune("export", paths.root, "--to", tmp_path / "model")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_losses_are_those_of_an_undisturbed_run(
    running: tuple[subprocess.Popen[str], JobPaths], write_spec: WriteSpec, workshop: pathlib.Path
) -> None:
    process, paths = running
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2, [child.cmdline() for child in psutil.Process(process.pid).children(recursive=True)]
    os.kill(workers[1].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    records = read_journal(paths.metrics)
    again = [record for record in records if record["step"] in _repeated(records)]
    assert records[-1]["step"] == 120
    assert again, "the run went back to a checkpoint, so some steps were computed twice"
    by_step: dict[int, set[float]] = {}
    for record in records:
        by_step.setdefault(record["step"], set()).add(round(record["loss"], 9))
    assert sorted(by_step) == list(range(1, 121))
    assert all(max(values) - min(values) < 1e-6 for values in by_step.values())


def _repeated(records: list[dict[str, float]]) -> set[float]:
    steps = [record["step"] for record in records]
    return {step for step in steps if steps.count(step) > 1}
