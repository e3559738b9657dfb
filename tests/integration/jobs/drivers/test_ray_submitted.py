"""`python -m jobs.finetune` as Ray starts it for `ray job submit`, beside a real server whose machines are made up."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.ray.runtime_env import digest_of_environment
from cluster.settings import RAY_JOB
from cluster.testing import FakeBackend
from tests.support import tiny
from tests.support.gangs import ROOT
from tests.support.processes import Talker, wait_for
from tests.support.server import Server, server

MANY, MOST_MB, MOST_OF_A_CORE = 8, 60, 0.01


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    tiny.save_model(folder / "model", "bert")
    tiny.write_labelled(folder / "labelled.jsonl", 50, 3)
    spec = {
        "name": "guest",
        "model": {"path": "./model", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "labelled.jsonl", "format": "classification", "seq_len": 64},
        "train": {"max_steps": 4, "global_batch_size": 144, "per_device_train_batch_size": 1},
        "resources": {"num_workers": 8, "gpus_per_worker": 1},
        "storage_path": str(folder / "runs"),
    }
    (folder / "job.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Server]:
    """One node of eight GPUs; programs run until they are stopped."""
    with server(tmp_path, nodes=1) as made:
        yield made


class Guest(Talker):
    """One driver; `output` is what `ray job logs` would show."""

    def __init__(self, project: Path, url: str, name: str, *options: str, **more: Any) -> None:
        said = {"metadata": {"job_submission_id": name, **more.pop("metadata", {})}}
        own = {RAY_JOB: json.dumps(said), "FLEETUNE_URL": url, "FLEETUNE_HOME": str(project), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "jobs.finetune", "job.json", *options]
        super().__init__(command, project / f"{name}.log", cwd=project, env={**os.environ, **own, **more})


Start = Callable[..., Guest]


@pytest.fixture
def start(queue: Server, project: Path) -> Iterator[Start]:
    """Starts guests of the queue. None is left at the end."""
    started: list[Guest] = []

    def begin(name: str, *options: str, **more: Any) -> Guest:
        started.append(Guest(project, queue.url, name, *options, **more))
        return started[-1]

    yield begin
    for guest in started:
        guest.kill()


def jobs(queue: Server) -> list[dict[str, Any]]:
    with queue.client() as client:
        found: list[dict[str, Any]] = client.get("/v1/jobs").json()["jobs"]
        return found


def only(queue: Server) -> dict[str, Any]:
    (job,) = jobs(queue)
    return job


def machines(queue: Server) -> FakeBackend:
    assert queue.machines is not None
    return queue.machines


def test_it_queues_waits_and_ends_as_its_job_does(queue: Server, start: Start) -> None:
    machines(queue).script("*", runs_s=1000.0)
    first = start("raysubmit_a")
    first.says("queued as guest-")
    wait_for(lambda: only(queue)["state"] == "running", "it runs")  # else the second one may go first
    second = start("raysubmit_b", metadata={"priority": "7"})
    second.says("too little is free")
    waiting = next(job for job in jobs(queue) if job["state"] == "queued")
    assert waiting["priority"] == 7 and waiting["kind"] == "finetune"
    wait_for(lambda: [job["state"] for job in jobs(queue)].count("running") == 1, "the first one runs")
    machines(queue).advance(1000.0)
    assert first.ends() == 0
    wait_for(lambda: [job["state"] for job in jobs(queue)].count("running") == 1, "the second one runs")
    machines(queue).advance(1000.0)
    assert second.ends() == 0
    assert {job["state"] for job in jobs(queue)} == {"succeeded"}
    assert "succeeded" in second.output and "Traceback" not in first.output + second.output


def test_it_ends_as_a_failed_job_ends(queue: Server, start: Start) -> None:
    machines(queue).fail("guest-*", exit_code=2)
    guest = start("raysubmit_a")
    assert guest.ends() == 2
    assert " failed " in guest.output and "to do: " in guest.output


def test_when_it_is_stopped_its_job_is_cancelled(queue: Server, start: Start) -> None:
    guest = start("raysubmit_a")
    wait_for(lambda: jobs(queue) and only(queue)["state"] == "running", "it runs")
    guest.process.send_signal(signal.SIGTERM)
    assert guest.ends() == 130
    wait_for(lambda: only(queue)["state"] == "cancelled", "it is cancelled")
    assert "its job is cancelled" in guest.output and "Traceback" not in guest.output


def test_when_ray_says_that_it_has_ended_its_job_is_cancelled(queue: Server, start: Start) -> None:
    guest = start("raysubmit_a")
    guest.says("queued as")
    guest.kill()
    time.sleep(1.0)
    assert only(queue)["wanted"] == "run"  # nobody has said yet that it has ended
    machines(queue).end_elsewhere("raysubmit_a")
    wait_for(lambda: only(queue)["state"] == "cancelled", "it is cancelled")


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_is_waited_for(queue: Server, start: Start) -> None:
    """A driver that Ray has started waits for its server before it is queued and while its job runs."""
    queue.kill()
    guest = start("raysubmit_a")
    guest.says("s so far); nothing is started before it does")
    assert "does not answer usefully (" in guest.output
    queue.start()
    guest.says("the orchestrator answers again")
    guest.says("queued as guest-")
    wait_for(lambda: only(queue)["state"] == "running", "it runs")
    queue.kill()
    guest.says("the job goes on meanwhile")
    queue.start()
    machines(queue).lose(f"{only(queue)['job_id']}-1")
    wait_for(lambda: only(queue)["attempt"] == 2, "it was started again", 240.0)
    assert guest.process.poll() is None
    guest.kill()


def test_what_the_orchestrator_refuses_ends_at_once(queue: Server, start: Start) -> None:
    large = start("raysubmit_a", "--set", "resources.num_workers=9")
    assert large.ends() == 2 and "does not accept this job" in large.output
    unknown = start("raysubmit_b", metadata={"tenant": "nobody"})
    assert unknown.ends() == 2 and "there is no tenant 'nobody'" in unknown.output
    wrong = start("raysubmit_c", "--set", "train.learning_rate=-1")
    assert wrong.ends() == 2 and "learning_rate" in wrong.output
    resumes = start("raysubmit_d", "--resume", str(project))
    assert resumes.ends() == 2 and "error: " in resumes.output
    assert jobs(queue) == []
    assert "Traceback" not in "".join(guest.output for guest in (large, unknown, wrong, resumes))


def test_one_too_many_is_told_so_and_ends(queue: Server, start: Start) -> None:
    queue.end()
    queue.options = (*queue.options, "--most-ray-submitted", "1")
    machines(queue).run_elsewhere("raysubmit_a")
    queue.start()
    first = start("raysubmit_a")
    first.says("queued as")
    second = start("raysubmit_b")
    assert second.ends() == 2 and "at most 1 program of" in second.output and "fleetune submit" in second.output
    assert len(jobs(queue)) == 1
    first.kill()
    machines(queue).end_elsewhere("raysubmit_a")
    wait_for(lambda: only(queue)["state"] == "cancelled", "its place is free")
    third = start("raysubmit_c")
    third.says("queued as")
    third.kill()


def test_with_tokens_the_token_decides_and_metadata_chooses_among_its_tenants(queue: Server, start: Start) -> None:
    admin = queue.token("root", "admin")
    with queue.client(admin) as client:
        for tenant in ("speech", "vision"):
            assert client.put(f"/v1/tenants/{tenant}", json={"weight": 1.0}).status_code < 300
    anna = queue.token("anna", "member", "vision")
    without = start("raysubmit_a")
    assert without.ends() == 2 and "token" in without.output
    others = start("raysubmit_b", metadata={"tenant": "speech"}, FLEETUNE_TOKEN=anna)
    assert others.ends() == 2 and "does not accept this job" in others.output
    own = start("raysubmit_c", metadata={"tenant": "vision"}, FLEETUNE_TOKEN=anna)
    own.says("queued as guest-")
    with queue.client(admin) as client:
        (job,) = client.get("/v1/jobs").json()["jobs"]
    assert (job["tenant"], job["submitted_by"]) == ("vision", "anna")


def test_a_repetition_is_answered_with_the_same_job_and_a_package_is_one_of_ray_s(queue: Server, project: Path) -> None:
    spec = json.loads((project / "job.json").read_text())
    spec["model"]["path"], spec["data"]["train"] = str(project / "model"), str(project / "labelled.jsonl")
    sent = {"key": "k", "submission": "raysubmit_a", "spec": spec, "environment": digest_of_environment({})}
    with queue.client() as client:
        first, second = (client.post("/v1/guest/join", json=sent) for _ in range(2))
        assert first.status_code == second.status_code == 201 and first.json() == second.json()
        refused: httpx.Response = client.post("/v1/guest/join", json={**sent, "key": "l", "package": "/etc"})
        assert refused.status_code == 422 and "package" in refused.text
        for wrong in (
            {"package": "/tmp/ray/s/runtime_resources/working_dir_files/../../../.."},
            {"submission": "?x"},
            {"submission": "a/logs"},
            {"environment": "x"},
        ):
            assert client.post("/v1/guest/join", json={**sent, "key": "l", **wrong}).status_code == 422
        command = {"kind": "command", "name": "c", "command": ["env"]}
        assert client.post("/v1/guest/join", json={**sent, "key": "l", "spec": command}).status_code == 400
        assert client.post("/v1/guest/join", json={**sent, "key": "l", "queue": "another"}).status_code == 409
        assert client.post(f"/v1/jobs/{first.json()['job_id']}/cancel").status_code == 200
        wait_for(lambda: only(queue)["state"] == "cancelled", "it is cancelled")
        retry = client.post(f"/v1/jobs/{first.json()['job_id']}/retry")
        assert retry.status_code == 409 and "submit it again that way" in retry.text
        assert client.post("/v1/guest/look", json={"job_id": "nobody"}).status_code == 404
    assert len(jobs(queue)) == 1


@pytest.mark.slow
def test_each_of_many_waits_in_little_memory_and_a_hundredth_of_a_core(queue: Server, start: Start) -> None:
    """Ray's own process for each submitted job comes on top; Ray has no way to do without."""
    first = start("raysubmit_first")
    first.says("queued as")
    guests = [start(f"raysubmit_{number}") for number in range(MANY)]
    for guest in guests:
        guest.says("queued as", within_s=300.0)
    for guest in guests:
        guest.says("too little is free", within_s=300.0)
    processes = [psutil.Process(guest.process.pid) for guest in guests]
    resident = [process.memory_info().rss / 1e6 for process in processes]
    assert max(resident) < MOST_MB, f"{max(resident):.0f} MB"
    before = [sum(process.cpu_times()[:2]) for process in processes]
    began = time.monotonic()
    time.sleep(15.0)
    took_s = time.monotonic() - began
    shares = [(sum(process.cpu_times()[:2]) - used) / took_s for process, used in zip(processes, before, strict=True)]
    print(f"resident {max(resident):.1f} MB at most; {100 * max(shares):.2f} % of a core at most")
    assert max(shares) < MOST_OF_A_CORE
    assert "Traceback" not in guests[7].output
    with queue.client() as client:
        assert client.get("/v1/counts").json()["states"]["queued"] == MANY
