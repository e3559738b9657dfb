"""A training that the queue gives fewer workers when another job comes, and more when it has gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data.prepare import prepare
from jobs.journal import read_journal
from jobs.load import load_spec
from jobs.paths import JobPaths
from tests.support import tiny
from tests.support.processes import wait_for
from tests.support.reference import plain_losses
from tests.support.server import Server, server, spec

STEPS, FURTHER = 100_000, 10
PROTECTED_S = 5.0
BATCH = {"train__global_batch_size": 8, "train__per_device_train_batch_size": 4, "train__max_steps": STEPS}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_shrinks_for_another_job_and_grows_again_and_computes_the_same(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", "llama")
    train = tiny.write_text(tmp_path / "train.jsonl", 300)
    elastic = tiny.spec_of(tmp_path / "runs", model, train, name="elastic", **BATCH).model_dump(mode="json")
    elastic["resources"] = {**elastic["resources"], "num_workers": {"min": 1, "max": 2}, "cpus_per_worker": 1}
    other = spec("other", gpus=0, command=["sleep", "1000"])
    (tmp_path / "server").mkdir()
    with server(tmp_path / "server", "--protected-s", str(PROTECTED_S), local=True) as queue:
        first = submit(queue, elastic)
        wait_for(lambda: job(queue, first)["step"] > FURTHER, "it trains", 180.0)
        assert job(queue, first)["placement"][0][1] == 2 and job(queue, first)["sizes"] == [1, 2]

        second = submit(queue, other)
        wait_for(lambda: job(queue, second)["state"] == "running", "it makes room", 120.0)
        at = job(queue, first)["step"]
        wait_for(lambda: job(queue, first)["step"] > at + FURTHER, "it goes on with one worker", 180.0)
        shrunk = job(queue, first)
        assert (shrunk["num_workers"], shrunk["attempt"], shrunk["interruptions"]) == (1, 2, 0)
        cancelled(queue, second)
        wait_for(lambda: job(queue, first)["num_workers"] == 2, "it grows", 120.0)
        at = job(queue, first)["step"]
        wait_for(lambda: job(queue, first)["step"] > at + FURTHER, "it goes on with two", 180.0)
        paths = JobPaths(cancelled(queue, first))
        story = [event["message"] for event in events(queue, first)]
        assert f"goes on with 1 worker instead of 2: {second} goes first" in story, story
        assert "goes on with 2 workers instead of 1" in story
    count = len(records(paths))
    assert [record["step"] for record in records(paths)] == list(range(1, count + 1))  # none was computed twice
    parsed = load_spec(paths.spec)
    prepared = prepare(parsed, parsed.model.path, engine="plain", say=lambda text: None)
    undisturbed = plain_losses(parsed, prepared, count).loss
    assert [record["loss"] for record in records(paths)] == pytest.approx(undisturbed, rel=1e-4)


def submit(queue: Server, one: dict[str, Any]) -> str:
    with queue.client() as client:
        answer = client.post("/v1/jobs", json={"specs": [one]})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobs"][0]["job_id"])


def cancelled(queue: Server, job_id: str) -> str:
    """Where its run is."""
    with queue.client() as client:
        client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    wait_for(lambda: job(queue, job_id)["state"] == "cancelled", "it is cancelled", 180.0)
    return str(job(queue, job_id)["run"])


def job(queue: Server, job_id: str) -> dict[str, Any]:
    with queue.client() as client:
        found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return found


def events(queue: Server, job_id: str) -> list[dict[str, Any]]:
    with queue.client() as client:
        found: list[dict[str, Any]] = client.get(f"/v1/jobs/{job_id}/events").json()["events"]
    return found


def records(paths: JobPaths) -> list[dict[str, Any]]:
    return [record for record in read_journal(paths.metrics) if "loss" in record]
