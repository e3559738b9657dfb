"""`ray job submit` against a cluster started by `ray start --head`, with token authentication on."""

from __future__ import annotations

import os
import pathlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.run.outcome import Status
from jobs.storage.journal import read_journal
from tests.acceptance.conftest import FLEETUNE, newest_run, outcome_of
from tests.support.gangs import FORKED
from tests.support.projects import make_project
from tests.support.raycluster import RAY, ray_head


@dataclass(frozen=True)
class Cluster:
    """A Ray head on loopback that asks for a token."""

    env: dict[str, str]
    gcs: str
    dashboard: str

    def submit(self, project: pathlib.Path, *entry: str) -> Any:
        """`ray job submit` with the project as working directory; the finished client."""
        command = [str(RAY), "job", "submit", "--address", self.dashboard, "--working-dir", str(project), "--", *entry]
        deadline = time.monotonic() + 120
        while True:
            done = subprocess.run(command, env=self.env, cwd=project, capture_output=True, text=True, timeout=400)
            starting = "No available agent to submit job" in done.stdout + done.stderr  # Ray's, on a busy machine
            if not starting or time.monotonic() > deadline:
                return done
            time.sleep(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    python = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"  # where `python` is the one that runs this
    with ray_head(num_cpus=4, PYTHONPATH=FORKED, PATH=python) as head:
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.temp / "token")}
        yield Cluster({**os.environ, **own, "PYTHONPATH": FORKED}, head.gcs, head.dashboard)


@pytest.fixture
def project(workshop: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return make_project(tmp_path / "project", workshop / "runs", learning_rate=1e-3)


@pytest.mark.slow
def test_a_submitted_job_trains_evaluates_and_exports(
    cluster: Cluster, project: pathlib.Path, workshop: pathlib.Path
) -> None:
    """`ray job submit` without an orchestrator: the user's folder travels, and its metric counts."""
    done = cluster.submit(project, "python", "-m", "jobs.finetune", "job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    paths = newest_run(workshop)
    outcome = outcome_of(paths)
    assert outcome.status is Status.SUCCEEDED and outcome.step == 4
    assert outcome.metrics["eval_share_right"] == pytest.approx(outcome.metrics["eval_accuracy"])
    assert len(read_journal(paths.metrics)) == 4
    assert (pathlib.Path(paths.model) / "model.safetensors").exists()
    assert "succeeded after 4 steps" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_what_can_never_be_is_refused_at_once_and_fails_the_job(cluster: Cluster, project: pathlib.Path) -> None:
    """More workers than the cluster has, and a run in a folder that Ray removes."""
    entry = ("python", "-m", "jobs.finetune", "job.yaml", "--set")
    too_many = cluster.submit(project, *entry, "resources.num_workers=9", "--set", "train.global_batch_size=16")
    assert too_many.returncode != 0
    assert "the most that would fit is resources.num_workers: 4" in too_many.stdout
    vanishing = cluster.submit(project, *entry, "storage_path=runs")
    assert vanishing.returncode != 0
    assert "storage_path" in vanishing.stdout and "would be deleted with it" in vanishing.stdout
    assert "Traceback" not in too_many.stdout + vanishing.stdout


@pytest.mark.slow
def test_without_the_token_nothing_starts(cluster: Cluster, project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    refused = Cluster({**cluster.env, "RAY_AUTH_TOKEN_PATH": str(wrong)}, cluster.gcs, cluster.dashboard).submit(
        project, "python", "-m", "jobs.finetune", "job.yaml"
    )
    assert refused.returncode != 0
    assert "authentication" in (refused.stdout + refused.stderr).lower()


@pytest.mark.slow
def test_fleetune_run_with_an_address_uses_that_cluster(
    cluster: Cluster, project: pathlib.Path, workshop: pathlib.Path
) -> None:
    """Without an address a run brings its own Ray along. And one that nobody answers at is named."""
    command = [str(FLEETUNE), "run", "job.yaml", "--address", cluster.gcs, "--set", "train.max_steps=2"]
    done = subprocess.run(command, env=cluster.env, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome_of(newest_run(workshop)).step == 2
    nowhere = [*command[:4], "127.0.0.1:1", *command[5:]]
    refused = subprocess.run(nowhere, env=cluster.env, cwd=project, capture_output=True, text=True, timeout=400)
    assert refused.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in refused.stdout + refused.stderr
