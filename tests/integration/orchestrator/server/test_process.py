"""`fleetune serve` as a process: how it comes up, what it refuses, and what is left when it ends or is killed."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.store import open_store
from tests.support.processes import closed_port, wait_for
from tests.support.server import Server, server, spec

READERS, READ_AT_ONCE = 100, 16  # the server has so many threads for what waits for machines


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path) as found:
        yield found


def submit(client: httpx.Client, *specs: dict[str, object], **more: object) -> list[str]:
    answer = client.post("/v1/jobs", json={"specs": specs, **more})
    assert answer.status_code == 201, answer.text
    return [one["job_id"] for one in answer.json()["jobs"]]


def state(client: httpx.Client, job_id: str) -> str:
    return str(client.get(f"/v1/jobs/{job_id}").raise_for_status().json()["state"])


def test_it_says_what_it_is_and_what_to_type_next(made_up: Server) -> None:
    for words in ("Fleetune ", made_up.store, "2 nodes", "16 GPUs", made_up.url, "none are needed", "fleetune submit"):
        assert words in made_up.log
    with made_up.client() as client:
        (job_id,) = submit(client, spec("told"))
        wait_for(lambda: f"{job_id}: running" in made_up.log, "it is told")
        client.get("/v1/jobs")
    assert "leads" in made_up.log
    assert "GET" not in made_up.log


def test_it_leaves_its_address_for_clients_of_its_machine_and_takes_it_away(made_up: Server) -> None:
    record = made_up.home / "server.json"
    assert json.loads(record.read_text())["url"] == made_up.url
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(made_up.home.stat().st_mode) == 0o700
    assert made_up.end() == 0
    assert not record.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_and_soon_and_jobs_go_on(made_up: Server, number: signal.Signals) -> None:
    with made_up.client() as client:
        (job_id,) = submit(client, spec())
        wait_for(lambda: state(client, job_id) == "running", "it runs")
        assert made_up.process is not None
        made_up.process.send_signal(number)
        assert made_up.process.wait(60.0) == 0  # it waits for no client: this one stays connected
    assert made_up.log.rstrip().endswith("stopped; jobs go on")
    assert "Traceback" not in made_up.log
    assert made_up.machines is not None
    assert [one.ended for one in made_up.machines.submissions()] == [False]
    store = open_store(made_up.store)
    leader = store.leader()
    store.close()
    assert leader is not None and leader.expires_s <= time.time()  # the next one need not wait
    made_up.start()
    with made_up.client() as client:
        assert state(client, job_id) == "running"


def test_a_killed_server_comes_back_with_all_that_was_there(made_up: Server) -> None:
    with made_up.client() as client:
        ids = submit(client, *(spec(f"job-{number}", gpus=8) for number in range(20)), key="twenty")
        wait_for(lambda: client.get("/v1/counts").json()["states"].get("running") == 2, "two of them run")
        before = {one["job_id"]: one["attempt"] for one in client.get("/v1/jobs").json()["jobs"]}
    made_up.kill()
    made_up.start()
    with made_up.client() as client:
        after = {one["job_id"]: one["attempt"] for one in client.get("/v1/jobs").json()["jobs"]}
        assert after == before
        assert submit(client, *(spec(f"job-{number}", gpus=8) for number in range(20)), key="twenty") == ids
        assert client.get("/v1/counts").json()["states"] == {"queued": 18, "running": 2}
    assert made_up.machines is not None
    assert len(made_up.machines.history()) == 2


def test_a_submission_that_was_answered_survives_a_kill_at_any_moment(made_up: Server) -> None:
    answered: list[str] = []

    def send(worker: int) -> None:
        with made_up.client() as client:
            for number in range(1000):
                try:
                    answered.extend(submit(client, spec(f"w{worker}-{number}", gpus=8)))
                except httpx.TransportError:
                    return

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(send, worker) for worker in range(4)]
        wait_for(lambda: len(answered) > 50, "some were answered")
        made_up.kill()
        for one in done:
            one.result()
    made_up.start()
    with made_up.client() as client:
        assert [client.get(f"/v1/jobs/{job_id}").status_code for job_id in answered] == [200] * len(answered)


def test_a_full_disk_is_503_and_nothing_is_half_done(made_up: Server) -> None:
    """As far as files may grow: a limit on the process stands for the disk's end."""
    assert made_up.process is not None
    pid, no_limit = made_up.process.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with made_up.client() as client:
        (first,) = submit(client, spec("before", gpus=8))
        size = max(path.stat().st_size for path in made_up.home.glob("queue.db*"))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        bulk: dict[str, Any] = {"specs": [spec(f"full-{number}", gpus=8) for number in range(1000)], "key": "full"}

        def refused() -> bool:
            answer = client.post("/v1/jobs", json=bulk)
            assert answer.status_code == 503, answer.text
            return "Retry-After" in answer.headers and answer.json()["error"] == "StoreBroken"

        assert refused()
        assert client.get("/healthz").status_code == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, no_limit)
        assert client.get("/v1/jobs", params={"name": "full-"}).json()["jobs"] == []
        assert len(submit(client, *bulk["specs"], key="full")) == 1000
        assert state(client, first) in ("queued", "starting", "running")


def test_slow_logs_hold_up_nobody_who_asks_for_something_else(made_up: Server) -> None:
    """Whoever waited for the readers would be answered after most of them: the server gives each half a minute."""
    with made_up.client() as client, contextlib.ExitStack() as stack:
        (job_id,) = submit(client, spec())
        wait_for(lambda: state(client, job_id) == "running", "it runs")
        path = made_up.folder / "cluster"
        path.unlink()
        pool = stack.enter_context(ThreadPoolExecutor(READERS))
        silent = stack.enter_context(socket.socket(socket.AF_UNIX))
        silent.bind(str(path))  # machines that take a question and do not answer
        silent.listen(1000)
        silent.setblocking(False)
        asked: list[socket.socket] = []
        begun: list[bool] = []

        def read_the_log() -> None:
            with httpx.Client(base_url=made_up.url, timeout=600.0) as reader, contextlib.suppress(httpx.TransportError):
                begun.append(True)
                assert reader.get(f"/v1/jobs/{job_id}/logs/output").status_code == 503

        def all_wait() -> bool:
            with contextlib.suppress(BlockingIOError):
                asked.append(stack.enter_context(silent.accept()[0]))
            return len(asked) >= READ_AT_ONCE and len(begun) == READERS

        readers = [pool.submit(read_the_log) for _ in range(READERS)]
        wait_for(all_wait, "they read")
        for _ in range(30):
            time.sleep(0.1)
            assert state(client, job_id) == "running"
        assert sum(not one.done() for one in readers) > READERS / 2, "it waits for the readers"
        made_up.kill()
        for one in readers:
            one.result()


@pytest.mark.slow
def test_what_cannot_be_served_is_refused_in_one_message(tmp_path: Path) -> None:
    found = Server(tmp_path)
    (tmp_path / "text").write_text("no database " * 100)
    with closed_port() as port:
        refuses(tmp_path, found, f"http://127.0.0.1:{port}")


def refuses(tmp_path: Path, found: Server, nowhere: str) -> None:
    cases: list[tuple[int, str, list[str]]] = [
        (2, "fleetune tokens add NAME --role admin", ["--host", "0.0.0.0"]),
        (2, "no address", ["--host", "no.such.host.invalid"]),
        (2, "no address of this machine", ["--host", "192.0.2.1", "--store", str(tmp_path / "with-token")]),
        (2, "is no SQLite database", ["--store", str(tmp_path / "text")]),
        (2, "not mysql://", ["--store", "mysql://x"]),
        (1, nowhere, ["--address", nowhere]),
        (2, "dashboard, as http://head:8265", ["--address", "head:6379"]),
        (2, "is no URL", ["--url", "head:8400"]),
    ]
    for code, words, options in cases:
        done = found.run("serve", "--port", "0", *options)
        assert (done.returncode, done.stdout) == (code, ""), (options, done)
        assert words in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr) < 700


def test_a_server_does_not_start_with_other_machines_than_those_of_running_jobs(made_up: Server) -> None:
    with made_up.client() as client:
        (job_id,) = submit(client, spec())
        wait_for(lambda: state(client, job_id) == "running", "it runs")
    made_up.end()
    done = made_up.run("serve", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "1 job of this store holds leases on a made-up cluster" in done.stderr and "without Ray" in done.stderr
    assert f"Start the server with --address {made_up.options[-1]}" in done.stderr
    made_up.options = ("--take-over",)
    made_up.start()
    with made_up.client() as client:
        wait_for(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] != "running", "it counts as lost")
    assert "leads the queue" in made_up.log


def test_a_port_or_a_home_that_is_taken_is_named(made_up: Server, tmp_path: Path) -> None:
    done = made_up.run("serve", "--port", "0")
    assert done.returncode == 2
    assert made_up.url in done.stderr and "--store" in done.stderr
    other = Server(tmp_path / "other")
    other.folder.mkdir()
    done = other.run("serve", "--port", str(made_up.port))
    assert done.returncode == 2
    assert f"port {made_up.port}" in done.stderr and "--port" in done.stderr


def test_tokens_are_made_listed_and_revoked_by_command(made_up: Server) -> None:
    first = made_up.run("tokens", "add", "anna", "--role", "member", "--tenant", "default")
    assert first.returncode == 2 and "admin" in first.stderr
    admin = made_up.token("root", "admin")
    refused = made_up.run("tokens", "list")
    assert refused.returncode != 0 and "FLEETUNE_TOKEN" in refused.stderr
    made_up.environment = {"FLEETUNE_TOKEN": admin}
    made = made_up.run("tokens", "add", "anna", "--role", "member", "--tenant", "default")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("ft_") and len(made.stdout.strip()) == 46
    listed = made_up.run("tokens", "list").stdout
    assert "anna  member  default" in listed and "root  admin   all" in listed
    assert made_up.run("tokens", "revoke", "anna").returncode == 0
    with made_up.client(made.stdout.strip()) as client:
        wait_for(lambda: client.get("/v1/me").status_code == 401, "it opens nothing")
    unknown = made_up.run("tokens", "revoke", "nobody")
    assert unknown.returncode == 2 and "nobody" in unknown.stderr
    taken = made_up.run("tokens", "add", "anna", "--role", "viewer")
    assert taken.returncode == 2 and "anna" in taken.stderr


def test_a_second_server_on_one_store_takes_over(made_up: Server, tmp_path: Path) -> None:
    other = Server(tmp_path / "other", (*made_up.options, "--store", made_up.store))
    other.folder.mkdir()
    other.start()

    def leads(client: httpx.Client) -> bool:
        return bool(client.get("/v1/server").json()["leads"])

    try:
        with other.client() as of_other, made_up.client() as of_made_up:
            wait_for(lambda: leads(of_other) != leads(of_made_up), "one leads")
            # Usually the first one; but if it stood still just now, the other one has taken over.
            pair = [(made_up, of_made_up), (other, of_other)]
            (leader, of_leader), (_, client) = reversed(pair) if leads(of_other) else pair
            assert client.get("/v1/server").json()["leader_url"] == leader.url
            (job_id,) = submit(client, spec())
            wait_for(lambda: state(of_leader, job_id) == "running", "the leader has started it")
            leader.end()
            wait_for(lambda: leads(client), "the other one leads")
            assert state(client, job_id) == "running"
    finally:
        other.kill()


def test_the_newest_time_is_kept_over_a_restart(made_up: Server) -> None:
    made_up.end()
    store = open_store(made_up.store)
    ahead_s = time.time() + 1000.0
    assert abs(float(store.facts()["newest_s"]) - time.time()) < 100.0
    store.put_facts({"newest_s": repr(ahead_s)})  # as if the machine's clock had gone back since
    store.close()
    made_up.start()
    assert "s behind what the store has seen" in made_up.log
    with made_up.client() as client:
        (job_id,) = submit(client, spec())
        assert client.get(f"/v1/jobs/{job_id}").json()["submitted_s"] >= ahead_s
        wait_for(lambda: state(client, job_id) == "running", "it is started all the same")


@pytest.mark.slow
def test_a_command_runs_on_this_machine_from_submission_to_its_log(tmp_path: Path) -> None:
    secret = "a-secret-of-the-server"
    with server(tmp_path, local=True, secrets={"GREETING": secret}) as found, found.client() as client:
        greet = spec("greet", gpus=0, command=["sh", "-c", "echo hello $GREETING"], queue={"secrets": ["GREETING"]})
        (job_id,) = submit(client, greet)
        wait_for(lambda: state(client, job_id) in ("succeeded", "failed"), "it has ended", within_s=120.0)
        logs = {
            source: client.get(f"/v1/jobs/{job_id}/logs/{source}").json()["text"]
            for source in client.get(f"/v1/jobs/{job_id}/logs").json()["sources"]
        }
        assert state(client, job_id) == "succeeded", logs
        assert any("hello ***" in text for text in logs.values()), logs
        assert secret not in str(logs) + found.log
