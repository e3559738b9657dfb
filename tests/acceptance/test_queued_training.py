"""A real training through the queue, whose server is frozen, and killed, and started again."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.journal import read_journal
from jobs.paths import JobPaths
from orchestrator.store import open_store
from tests.support import tiny
from tests.support.processes import wait_for
from tests.support.server import Server, server

STEPS = 300


@pytest.mark.slow
def test_a_training_goes_on_without_its_server_and_is_told_and_adopted_when_there_is_one_again(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", "llama")
    train = tiny.write_text(tmp_path / "train.jsonl", 300)
    spec = tiny.spec_of(tmp_path / "runs", model, train, train__max_steps=STEPS, name="tiny")
    (tmp_path / "server").mkdir()
    with server(tmp_path / "server", local=True) as queue:
        with queue.client() as client:
            answer = client.post("/v1/jobs", json={"specs": [spec.model_dump(mode="json")]})
            assert answer.status_code == 201, answer.text
            job_id = answer.json()["jobs"][0]["job_id"]
            wait_for(lambda: job(queue, job_id)["run"], "the server knows the run", 120.0)
        paths = JobPaths(job(queue, job_id)["run"])
        wait_for(lambda: steps(paths) > 0, "it trains", 180.0)
        assert queue.process is not None

        queue.process.send_signal(signal.SIGSTOP)  # the driver's beats get no answer any more
        cut_off_at = steps(paths)
        wait_for(lambda: steps(paths) > cut_off_at + 20, "it trains on", 120.0)
        assert held(queue) == [(job_id, 1)]
        queue.process.send_signal(signal.SIGCONT)
        wait_for(lambda: job(queue, job_id)["step"] > cut_off_at, "the server is told", 60.0)

        queue.kill()
        killed_at = steps(paths)
        wait_for(lambda: steps(paths) > min(killed_at + 10, STEPS - 1), "it trains on", 120.0)
        assert held(queue) == [(job_id, 1)]
        queue.start()
        wait_for(lambda: job(queue, job_id)["state"] == "succeeded", "it has ended", 180.0)

        ended = job(queue, job_id)
        assert (ended["attempt"], ended["step"], ended["total_steps"]) == (1, STEPS, STEPS)
        assert ended["metrics"]["loss"] == pytest.approx(records(paths)[-1]["loss"])
        assert not held(queue)
    assert [record["step"] for record in records(paths)] == list(range(1, STEPS + 1))
    assert json.loads(Path(paths.outcome).read_text())["status"] == "succeeded"


def job(queue: Server, job_id: str) -> dict[str, Any]:
    with queue.client() as client:
        found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return found


def held(queue: Server) -> list[tuple[str, int]]:
    with contextlib.closing(open_store(queue.store)) as store:
        return [(lease.job_id, lease.attempt) for lease in store.leases(held=True)]


def records(paths: JobPaths) -> list[dict[str, Any]]:
    return [record for record in read_journal(paths.metrics) if "loss" in record]


def steps(paths: JobPaths) -> int:
    return max((record["step"] for record in records(paths)), default=0)
