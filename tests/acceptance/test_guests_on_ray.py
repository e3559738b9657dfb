"""`ray job submit -- python -m jobs.finetune` on a Ray that has an orchestrator: waits, is interrupted, goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.raylets import Raylet
from cluster.sessionrecord import read_record
from jobs.journal import read_journal
from jobs.outcome import Status, read_outcome
from jobs.paths import JobPaths
from tests.support import tiny
from tests.support.gangs import ROOT
from tests.support.processes import wait_for
from tests.support.raycluster import RAY, RayHead, ray_head
from tests.support.server import Server

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `python` is the one that runs this
STEPS, FURTHER = 100_000, 50
PROTECTED_S = 5.0


@pytest.fixture
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=3, PYTHONPATH=str(ROOT), PATH=PATH) as head:
        yield head


@pytest.fixture
def queue(head: RayHead, tmp_path: Path) -> Iterator[Server]:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.temp / "token")}
    found = Server(tmp_path, ("--address", head.dashboard, "--protected-s", str(PROTECTED_S)), environment)
    found.start()
    try:
        wait_for(lambda: "`ray job submit` queues from now on" in found.log, "drivers find it", 60.0)
        yield found
    finally:
        found.kill()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, all of which travels with the job: model, data, a metric of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    tiny.save_model(folder / "model", "bert")
    tiny.write_labelled(folder / "labelled.jsonl", 200, 3)
    (folder / "my_metrics.py").write_text(
        "def share_right(given):\n    return (given.predictions.argmax(-1) == given.label_ids).mean()\n"
    )
    spec = {
        "name": "guest",
        "model": {"path": "./model", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "labelled.jsonl", "format": "classification", "eval_fraction": 0.3, "seq_len": 64},
        "train": {"max_steps": STEPS, "global_batch_size": 8, "per_device_train_batch_size": 4},
        "eval": {"metrics": ["accuracy", "my_metrics:share_right"]},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": str(tmp_path / "runs"),
    }
    (folder / "job.json").write_text(json.dumps(spec))
    return folder


class Submitted:
    """One `ray job submit` that goes on; `output` is what its user sees."""

    def __init__(self, head: RayHead, project: Path, name: str, *options: str, **metadata: str) -> None:
        self.name, self._head, self._log = name, head, project.parent / f"{name}.log"
        words = ["job", "submit", "--address", head.dashboard, "--submission-id", name, "--working-dir", str(project)]
        words += ["--metadata-json", json.dumps(metadata), "--"]
        with open(self._log, "wb") as log:
            self._process = self._ray(*words, "python", "-m", "jobs.finetune", "job.json", *options, log=log)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def says(self, text: str, within_s: float = 180.0) -> None:
        wait_for(lambda: text in self.output or self._process.poll() is not None, f"it says {text!r}", within_s)
        assert text in self.output, self.output

    def ends(self, within_s: float = 300.0) -> int:
        return self._process.wait(within_s)

    def kill(self) -> None:
        """Its command only: the job is Ray's."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._ray("job", "stop", "--address", self._head.dashboard, self.name, log=subprocess.DEVNULL).wait(60.0)

    def _ray(self, *words: str, log: Any) -> subprocess.Popen[bytes]:
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._head.temp / "token")}
        return subprocess.Popen(
            [str(RAY), *words],
            env={**os.environ, **own, "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def submit(head: RayHead, project: Path) -> Iterator[Callable[..., Submitted]]:
    submitted: list[Submitted] = []

    def one(name: str, *options: str, **metadata: str) -> Submitted:
        submitted.append(Submitted(head, project, name, *options, **metadata))
        return submitted[-1]

    yield one
    for job in submitted:
        job.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_makes_way_for_another_and_goes_on_as_if_undisturbed(
    head: RayHead, queue: Server, submit: Callable[..., Submitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.temp / "token"))
    elsewhere = Raylet(head.temp, head.gcs, is_head=False)  # another node has no record of its own
    wait_for(lambda: (found := read_record(elsewhere)) is not None and found.url == queue.url, "it is copied", 60.0)

    first = submit("patient")
    first.says("step 1/")
    waits = submit("waits", "--set", "train.max_steps=4", priority="-1")
    waits.says("too little is free")
    waits.stop()
    waits.ends()
    assert "was stopped" in waits.output and "its job is cancelled" in waits.output
    time.sleep(PROTECTED_S)
    urgent = submit("urgent", "--set", "train.max_steps=4", priority="9")
    assert urgent.ends() == 0, urgent.output
    assert "succeeded after 4 steps" in urgent.output and "Traceback" not in urgent.output
    (made_way,) = [job for job in listed(queue) if job["priority"] == 9]
    outcome = read_outcome(JobPaths(made_way["run"]))
    assert outcome is not None and outcome.status is Status.SUCCEEDED
    # The module travelled with the guest, and its attempt found it.
    assert outcome.metrics["eval_share_right"] == pytest.approx(outcome.metrics["eval_accuracy"])
    (patient,) = [job for job in listed(queue) if job["priority"] == 0]
    assert patient["interruptions"] == 1
    paths = JobPaths(patient["run"])
    interrupted_at = len(read_journal(paths.metrics))
    wait_for(lambda: len(read_journal(paths.metrics)) > interrupted_at + FURTHER, "it goes on", 180.0)
    first.stop()
    records = read_journal(paths.metrics)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))  # none was computed twice
    assert first.ends() == 0 and "Traceback" not in first.output

    undisturbed = submit("undisturbed")
    undisturbed.says("step 1/")
    (again,) = [job for job in listed(queue) if job["state"] == "running"]
    whole = JobPaths(again["run"])
    wait_for(lambda: len(read_journal(whole.metrics)) >= interrupted_at + FURTHER, "it is as far", 180.0)
    undisturbed.stop()
    count = min(len(read_journal(whole.metrics)), len(records))
    losses = [[record["loss"] for record in read_journal(one.metrics)[:count]] for one in (paths, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    with queue.client() as client:

        def free() -> bool:
            (node,) = client.get("/v1/nodes").json()["nodes"]
            return (node["cpus"], node["foreign_cpus"], node["held"]) == (3, 0, [])

        wait_for(free, "Ray says that all is free again", 60.0)
    assert "Traceback" not in queue.log


def listed(queue: Server) -> list[dict[str, Any]]:
    with queue.client() as client:
        found: list[dict[str, Any]] = client.get("/v1/jobs").json()["jobs"]
    return found
