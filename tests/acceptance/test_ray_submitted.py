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

from cluster.ray.raylets import Raylet
from cluster.ray.session_record import read_record
from jobs.data.preparation.prepare import prepare
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.load import load_spec
from jobs.storage.journal import read_journal
from tests.acceptance.conftest import BEGINS_WITHIN_S
from tests.support.forked.fork_request import ONLY
from tests.support.gangs import PACED
from tests.support.processes import Talker, wait_for
from tests.support.projects import make_project
from tests.support.raycluster import RAY, RayHead, ray_head
from tests.support.reference import plain_losses
from tests.support.server import Server

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `python` is the one that runs this
STEPS, FURTHER = 20_000, 10  # of half a second each; of more, Ray Data would read most rows
PROTECTED_S = 5.0
# Only the workers of trainings are forked: the program of a submitted job looks for Ray's process among its ancestors.
ONLY_TRAINING = {ONLY: "MALLOC_ARENA_MAX"}  # which `jobs.training.on_ray.fit` sets for them


@pytest.fixture
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=3, PYTHONPATH=PACED, PATH=PATH, **ONLY_TRAINING) as head:
        yield head


@pytest.fixture
def queue(head: RayHead, tmp_path: Path) -> Iterator[Server]:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.temp / "token")}
    found = Server(tmp_path, ("--address", head.dashboard, "--protected-s", str(PROTECTED_S)), environment)
    found.start()
    try:
        wait_for(lambda: "`ray job submit` queues from now on" in found.log, "drivers find it", 120.0)
        yield found
    finally:
        found.kill()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", tmp_path / "runs", max_steps=STEPS)


class Submitted(Talker):
    """One `ray job submit` that goes on; `output` is what its user sees. Killed, it leaves the job to Ray."""

    def __init__(self, head: RayHead, project: Path, name: str, *options: str, **metadata: str) -> None:
        self._name, self._head = name, head
        words = ["--submission-id", name, "--working-dir", str(project), "--metadata-json", json.dumps(metadata), "--"]
        entry = ["python", "-m", "jobs.finetune", "job.yaml", *options]
        super().__init__(self._ray("submit", *words, *entry), project.parent / f"{name}.log", env=environment(head))

    def stop(self) -> None:
        done = subprocess.run(
            self._ray("stop", self._name), env=environment(self._head), capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    def _ray(self, what: str, *words: str) -> list[str]:
        return [str(RAY), "job", what, "--address", self._head.dashboard, *words]


def environment(head: RayHead) -> dict[str, str]:
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.temp / "token")}
    return {**os.environ, **own, "PATH": PATH}


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
@pytest.mark.timeout(1500)
def test_one_makes_way_for_another_and_goes_on_as_if_undisturbed(
    head: RayHead, queue: Server, project: Path, submit: Callable[..., Submitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that `ray job submit` starts are queued: one is interrupted for another, and its losses are those of plain
    PyTorch.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.temp / "token"))
    elsewhere = Raylet(head.temp, head.gcs, is_head=False)  # another node has no record of its own
    wait_for(lambda: (found := read_record(elsewhere)) is not None and found.url == queue.url, "it is copied", 120.0)

    first = submit("patient")
    first.says("step 1/", BEGINS_WITHIN_S)
    waits = submit("waits", "--set", "train.max_steps=4", priority="-1")
    waits.says("too little is free", BEGINS_WITHIN_S)
    waits.stop()
    waits.ends(300.0)
    assert "was stopped" in waits.output and "its job is cancelled" in waits.output
    time.sleep(PROTECTED_S)
    urgent = submit("urgent", "--set", "train.max_steps=4", priority="9")
    assert urgent.ends(300.0) == 0, urgent.output
    assert "succeeded after 4 steps" in urgent.output and "Traceback" not in urgent.output
    (made_way,) = [job for job in listed(queue) if job["priority"] == 9]
    outcome = read_outcome(JobPaths(made_way["run"]))
    assert outcome is not None and outcome.status is Status.SUCCEEDED
    # The module travelled with the submitted process, and the attempt found it.
    assert outcome.metrics["eval_share_right"] == pytest.approx(outcome.metrics["eval_accuracy"])
    (patient,) = [job for job in listed(queue) if job["priority"] == 0]
    assert patient["interruptions"] == 1
    paths = JobPaths(patient["run"])
    interrupted_at = len(read_journal(paths.metrics))
    wait_for(lambda: len(read_journal(paths.metrics)) > interrupted_at + FURTHER, "it goes on", BEGINS_WITHIN_S)
    first.stop()
    records = read_journal(paths.metrics)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))  # none was computed twice
    assert first.ends(300.0) == 0 and "Traceback" not in first.output

    monkeypatch.chdir(project)  # where its own module is found
    parsed = load_spec("job.yaml")
    prepared = prepare(parsed, parsed.model.path, engine="plain", say=lambda text: None)
    undisturbed = plain_losses(parsed, prepared, interrupted_at + FURTHER).loss
    assert [record["loss"] for record in records[: len(undisturbed)]] == pytest.approx(undisturbed, rel=1e-4)

    with queue.client() as client:

        def free() -> bool:
            (node,) = client.get("/v1/nodes").json()["nodes"]
            return (node["cpus"], node["foreign_cpus"], node["held"]) == (3, 0, [])

        wait_for(free, "Ray says that all is free again", 120.0)
    assert "Traceback" not in queue.log


def listed(queue: Server) -> list[dict[str, Any]]:
    with queue.client() as client:
        found: list[dict[str, Any]] = client.get("/v1/jobs").json()["jobs"]
    return found
