"""Ray takes a node away while a job of the queue trains there, as it does for a spot notice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.journal import read_journal
from jobs.paths import JobPaths
from tests.support import tiny
from tests.support.gangs import ROOT
from tests.support.processes import wait_for
from tests.support.raycluster import RAY, ray_head
from tests.support.raynodes import Nodes, ray_nodes
from tests.support.server import Server

FURTHER = 20


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with ray_head(num_cpus=1, PYTHONPATH=str(ROOT)) as head, ray_nodes(head, "a", "b", num_cpus=2) as nodes:
        yield nodes


@pytest.fixture
def queue(nodes: Nodes, tmp_path: Path) -> Iterator[Server]:
    options = ("--address", nodes.head.dashboard, "--shared", str(tmp_path))
    found = Server(tmp_path / "server", options, environment(nodes))
    found.folder.mkdir()
    found.start()
    yield found
    found.kill()


def environment(nodes: Nodes) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(nodes.head.temp / "token")}


def drain(nodes: Nodes, node_id: str) -> None:
    words = ["drain-node", "--address", nodes.head.gcs, "--node-id", node_id, "--deadline-remaining-seconds", "300"]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    done = subprocess.run(
        [str(RAY), *words], env={**os.environ, **environment(nodes)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_saves_the_step_it_stops_at_and_goes_on_on_another_node(nodes: Nodes, queue: Server, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", "llama")
    train = tiny.write_text(tmp_path / "train.jsonl", 300)
    spec = tiny.spec_of(tmp_path / "runs", model, train, train__max_steps=100_000, name="tiny")
    with queue.client() as client:
        answer = client.post("/v1/jobs", json={"specs": [spec.model_dump(mode="json")]})
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["jobs"][0]["job_id"]

        def job() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
            return found

        wait_for(lambda: job()["run"], "the server knows the run", 120.0)
        paths = JobPaths(job()["run"])
        wait_for(lambda: len(read_journal(paths.metrics)) > 0, "it trains", 180.0)
        ((node, workers),) = job()["placement"]
        assert workers == 2
        drain(nodes, node)
        wait_for(lambda: job()["attempt"] == 2, "another attempt has nodes", 120.0)
        ((other, _),) = job()["placement"]
        assert {node, other} == set(nodes.ids.values())
        before = len(read_journal(paths.metrics))
        wait_for(lambda: len(read_journal(paths.metrics)) > before + FURTHER, "it goes on", 180.0)
        steps = [record["step"] for record in read_journal(paths.metrics)]
        assert steps == list(range(1, len(steps) + 1))  # none was lost, none computed twice
        events = [event["message"] for event in client.get("/v1/events").json()["events"]]
        assert sum("Ray is about to take" in message for message in events) == 1
        wait_for(lambda: len(client.get("/v1/nodes").json()["nodes"]) == 2, "Ray has taken it away", 60.0)
        client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        wait_for(lambda: job()["state"] == "cancelled", "it has ended", 60.0)
    assert "Traceback" not in queue.log
