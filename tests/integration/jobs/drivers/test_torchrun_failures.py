"""What becomes of a run under torchrun in which one rank fails, or that is stopped before it trains."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import StorageOutage
from jobs.data.preparation.prepare import prepare
from jobs.drivers.finetune import torchrun_driver
from jobs.drivers.finetune.torchrun_watch import FailureWatch, LostPeers, Peer
from jobs.drivers.stop_request import STOPPED_EARLY
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import PlainProgress
from jobs.run.requests import ask_to_stop
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from tests.support import tiny
from tests.support.counted import CountedFileSystem, counted_bytes
from tests.support.gangs import HOLDING, ROOT, torchrun
from tests.support.processes import wait_for

# While they load the model, one rank may be killed; the others wait as in a call of native code.
METRIC = """
import os, signal, threading
import torch.distributed as dist

if dist.is_initialized():
    if dist.get_rank() == {dies}:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait(600)

def zero(given):
    return 0.0
"""


def test_a_process_ends_once_a_rank_has_reported_a_failure(tmp_path: pathlib.Path) -> None:
    paths, ended = JobPaths(str(tmp_path)), threading.Event()
    with FailureWatch(paths, ended.set, every_s=0.01, grace_s=0.01):
        assert not ended.wait(0.1)
        pathlib.Path(paths.failures).mkdir()
        pathlib.Path(paths.failure(1)).write_text("{}")
        assert ended.wait(60)


@pytest.mark.usefixtures("own_protocols")
def test_failures_on_object_storage_are_listed_six_times_a_minute() -> None:
    """It charges for each list. Processes are looked at every second."""
    paths, now_s, looks = JobPaths("counted:///runs/a"), 0.0, list[float]()

    def lost() -> bool:
        looks.append(now_s)
        return False

    watch = FailureWatch(paths, lambda: None, lost=lost, clock=lambda: now_s)
    with counted_bytes():
        before = CountedFileSystem.listed
        for second in range(60):
            now_s = float(second)
            assert not watch.has_failed()
        assert CountedFileSystem.listed - before == 6 and len(looks) == 60
        storage.write_bytes(paths.failure(1), b"{}")
        now_s = 60.0
        assert watch.has_failed()


def test_a_process_that_is_gone_is_a_failure_only_while_it_is_watched(tmp_path: pathlib.Path) -> None:
    ended, lost = threading.Event(), LostPeers()
    process = subprocess.Popen(["sleep", "600"])
    lost.watch((Peer(3, process.pid, "n1"),))
    with FailureWatch(JobPaths(str(tmp_path)), ended.set, lost=lost.look, every_s=0.01, grace_s=0.01):
        assert not ended.wait(0.1)
        process.kill()
        assert ended.wait(60)
    assert lost.text == f"rank 3 on n1, pid {process.pid}"
    lost.watch(())
    assert not lost.look()
    process.wait()


def outcome_of_run(
    folder: pathlib.Path, text: str | None = None, by_file: bool = False, **environment: str
) -> tuple[Outcome, JobPaths]:
    """Run two ranks under torchrun. As soon as they say `text`, stop them; without it, wait for the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [*command, "-m", "jobs.finetune", str(folder / "job.json")],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{ROOT}", **environment},
        )  # fmt: skip

    def run() -> JobPaths:
        (root,) = [run for run in (folder / "runs").iterdir() if (run / "spec.json").exists()]
        return JobPaths(str(root))

    try:
        if text is not None:
            said = folder / "output"
            wait_for(lambda: text in said.read_text() or process.poll() is not None, f"it says {text!r}", 240)
            assert process.poll() is None, said.read_text()
            ask_to_stop(run().root) if by_file else process.send_signal(signal.SIGTERM)
        process.wait(240)
    finally:
        process.kill()
        process.wait()
    outcome = read_outcome(run())
    assert outcome is not None, (folder / "output").read_text()
    if text is not None:
        assert f"resume: fleetune run --resume {run().root}" in (folder / "output").read_text()
    return outcome, run()


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Any:
    """The spec of a small job whose metric is METRIC."""
    (tmp_path / "own_metric.py").write_text(METRIC.format(dies=None))
    return written(tmp_path, "own_metric:zero")


def written(folder: pathlib.Path, metric: str) -> Any:
    """The spec of a small job, also in job.json."""
    tiny.save_model(folder / "bert", "bert")
    tiny.write_labelled(folder / "labelled.jsonl", 60, 3)
    spec = tiny.spec_of(
        folder / "runs", folder / "bert", folder / "labelled.jsonl", classify=True, train__max_steps=30,
        data__eval_fraction=0.3, eval__metrics=[metric],
    )  # fmt: skip
    (folder / "job.json").write_bytes(dump_spec(spec))
    return spec


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True])
def test_a_run_that_is_stopped_while_it_loads_the_model_ends_at_once_with_an_outcome(
    tmp_path: pathlib.Path, job: Any, by_file: bool
) -> None:
    outcome, _ = outcome_of_run(tmp_path, "loading the model", by_file)
    assert outcome.status is Status.INTERRUPTED and outcome.reason == STOPPED_EARLY


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_prepares_its_data_leaves_an_outcome(tmp_path: pathlib.Path, job: Any) -> None:
    (tmp_path / "hold.json").write_text(json.dumps({"parts": 0}))
    held = {"PYTHONPATH": f"{tmp_path}:{HOLDING}", "FLEETUNE_TESTS_HOLD_DATA": str(tmp_path / "hold.json")}
    outcome, _ = outcome_of_run(tmp_path, "preparing", False, **held)
    assert outcome.status is Status.INTERRUPTED and outcome.reason == "stopped while no workers were training"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_though_the_other_waits_in_a_call(
    tmp_path: pathlib.Path, job: Any, rank: int
) -> None:
    (tmp_path / "own_metric.py").write_text(METRIC.format(dies=rank))
    outcome, _ = outcome_of_run(tmp_path)
    assert outcome.status is Status.FAILED and f"a process of this run is gone (rank {rank} on " in str(outcome.reason)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others_within_seconds_and_the_outcome_is_written(tmp_path: pathlib.Path) -> None:
    """Under torchrun, where no driver looks on, and rank 0 waits in a collective."""
    spec = written(tmp_path, "tests.support.stuck_on_rank_0:zero")
    prepare(spec, spec.model.path, engine="plain", say=lambda text: None)
    done = torchrun(2, "-m", "jobs.finetune", str(tmp_path / "job.json"), timeout=400)  # rank 0 hangs for 600 s
    assert done.returncode != 0
    (root,) = [run for run in (tmp_path / "runs").iterdir() if (run / "spec.json").exists()]
    outcome = read_outcome(JobPaths(str(root)))
    assert outcome is not None and outcome.status is Status.FAILED and "only here" in str(outcome.reason)
    assert "only here" in done.stdout + done.stderr


def test_a_run_that_has_succeeded_stays_so_if_only_its_log_cannot_be_stored(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def lost_at_the_end(path: str) -> Iterator[None]:
        yield
        raise StorageOutage("the store does not answer")

    succeeded = Outcome(status=Status.SUCCEEDED, ended_at=datetime.datetime.now(datetime.UTC))
    begun = SimpleNamespace(paths=JobPaths(str(tmp_path)), spec=None, tell=lambda announce: None)
    for name, stub in {
        "begin_run": lambda spec, resume: begun,
        "redirected_output": lost_at_the_end,
        "concluded": lambda paths, drive, announce: succeeded,
        "ending_of": lambda paths, outcome: "succeeded",
        "from_rank_0": lambda value, group: value,
    }.items():
        monkeypatch.setattr(torchrun_driver, name, stub)
    progress = PlainProgress(sys.stdout)
    outcome = torchrun_driver._lead(None, None, None, None, progress, None)  # type: ignore[arg-type]
    assert outcome is succeeded
    assert "the outcome is stored, but the log or the last events are not" in capsys.readouterr().out
