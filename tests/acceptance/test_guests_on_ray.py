"""`ray job submit -- python -m jobs.finetune` on a Ray that has an orchestrator: waits, is interrupted, goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.journal import read_journal
from jobs.outcome import Status, read_outcome
from jobs.paths import JobPaths
from tests.support import tiny
from tests.support.gangs import ROOT
from tests.support.processes import wait_for
from tests.support.raycluster import RAY, RayHead, ray_head
from tests.support.server import Server

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `python` is the one that runs this
STEPS = 600
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_makes_way_for_another_and_goes_on_as_if_undisturbed(
    head: RayHead, queue: Server, project: Path, tmp_path: Path
) -> None:
    first = Submitted(head, project, "patient")
    first.says("step 1/")
    waits = Submitted(head, project, "waits", "--set", "train.max_steps=4")
    waits.says("too little is free")
    time.sleep(PROTECTED_S)
    urgent = Submitted(head, project, "urgent", "--set", "train.max_steps=4", priority="9")
    assert urgent.ends() == 0, urgent.output
    assert "succeeded after 4 steps" in urgent.output and "Traceback" not in urgent.output
    waits.stop()
    assert waits.ends() != 0
    assert first.ends() == 0, first.output
    assert f"succeeded after {STEPS} steps" in first.output and "Traceback" not in first.output

    jobs = listed(queue)
    by_priority = {job["priority"]: job for job in jobs if job["state"] == "succeeded"}
    patient, other = by_priority[0], by_priority[9]
    assert [job["state"] for job in jobs if job not in (patient, other)] == ["cancelled"]
    assert patient["attempt"] == 2 and patient["interruptions"] == 1 and other["attempt"] == 1
    paths = JobPaths(patient["run"])
    records = read_journal(paths.metrics)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))  # none was computed twice

    undisturbed = Submitted(head, project, "undisturbed")
    assert undisturbed.ends() == 0, undisturbed.output
    (again,) = [job for job in listed(queue) if job["run"] not in {job["run"] for job in jobs}]
    alone = read_journal(JobPaths(again["run"]).metrics)
    assert [record["loss"] for record in records] == pytest.approx([record["loss"] for record in alone], rel=1e-5)
    outcome = read_outcome(paths)
    assert outcome is not None and outcome.status is Status.SUCCEEDED
    # The module travelled with the guest, and its attempts found it.
    assert outcome.metrics["eval_share_right"] == pytest.approx(outcome.metrics["eval_accuracy"])

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
