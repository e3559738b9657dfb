"""`docs/three-machines.md`, run as it stands: each host has an address, a name, a /tmp and a home of its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.storage.journal import read_journal
from orchestrator.queue.states import ENDED, State
from orchestrator.store import open_store
from tests.support import tiny
from tests.support.gangs import ROOT
from tests.support.hosts import Host, answered, available, hide, hosts, mount_at, name_hosts
from tests.support.pagecommands import Block, blocks_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not available(), reason="needs root, iproute2 and util-linux to make hosts"),
]

PAGE = ROOT / "docs" / "three-machines.md"
STORAGE = pathlib.PurePosixPath("/srv/fleetune")
NAMES = ("head", "worker-1", "worker-2", "laptop")
NOT_RUN = 2  # what installs: there is no network between these hosts and the rest


@dataclass
class Machines:
    """The hosts of the page, and what every shell on them begins with."""

    by_name: dict[str, Host]
    shared: pathlib.Path
    every_shell: str = ""
    server: subprocess.Popen[Any] | None = None
    token: str = ""

    def carry_out(self, block: Block) -> str:
        """As a reader of the page does; what the last of its hosts has said."""
        said = ""
        if block.mark == "in every shell":
            self.every_shell += block.text
        elif block.mark == "on laptop, as job.yaml":
            (self.by_name["laptop"].private / "job.yaml").write_text(block.text)
        elif block.mark == "on head, goes on":
            self.start_server(block)
        elif block.mark is not None:
            stdin = self.token if "token" in block.mark else ""
            for name in block.where:
                said = self.run(name, block.text, stdin, tries=3 if "ray start" in block.text else 1)
        self.token = next((line for line in said.splitlines() if line.startswith("ft_")), self.token)
        return said

    def run(self, name: str, text: str, stdin: str = "", tries: int = 1) -> str:
        """`tries`: on a busy machine Ray's own time-outs may be too short."""
        host = self.by_name[name]
        command = host.command("bash", "-euo", "pipefail", "-c", self.every_shell + text)
        for _ in range(tries):
            done = subprocess.run(
                command, env=host.env, cwd=host.private, input=stdin, capture_output=True, text=True, timeout=400
            )
            if done.returncode == 0:
                return done.stdout
        raise AssertionError(f"on {name}:\n{text}\n{done.stdout}\n{done.stderr}\n{self.server_output()}")

    def start_server(self, block: Block) -> None:
        self.server = self.by_name["head"].start("bash", "-euc", self.every_shell + "exec " + block.text.strip())
        head = self.by_name["head"]
        awaited(lambda: answered(head, f"http://{head.address}:8400/readyz") is not None, self.server_output)

    def stop_server(self) -> None:
        assert self.server is not None
        self.server.send_signal(signal.SIGINT)
        assert self.server.wait(120) == 0, self.server_output()

    def server_output(self) -> str:
        out = self.by_name["head"].private / "out"
        return out.read_text(errors="replace")[-4000:] if out.exists() else ""

    def state(self, name: str) -> State:
        """As the store has it: cheaper than a start of `fleetune` at each look."""
        with contextlib.closing(open_store(str(self.by_name["head"].private / ".fleetune/queue.db"))) as store:
            (state,) = (job.state for job in store.jobs() if job.name == name)
            return state

    def jobs(self) -> dict[str, dict[str, Any]]:
        """As the laptop's owner sees them, by name."""
        told = self.run("laptop", "export FLEETUNE_URL=http://head:8400; fleetune queue --all --json")
        return {job["name"]: job for job in json.loads(told)}


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Only the storage is common, and that not to the laptop."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fleetune-machines-", dir="/var/tmp"))
    shared = folder / "shared"
    (shared / "models").mkdir(parents=True)
    (shared / "data").mkdir()
    tiny.save_model(shared / "models/llama", "llama")
    tiny.write_text(shared / "data/text.jsonl", 300)
    try:
        with hosts(len(NAMES), folder) as made:
            by_name = dict(zip(NAMES, made, strict=True))
            name_hosts(by_name, folder)
            for name, host in by_name.items():
                host.env.pop("GLOO_SOCKET_IFNAME")  # the page says it
                if name != "laptop":
                    mount_at(host, shared, STORAGE)
                hide(host, shared)
            yield Machines(by_name, shared)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def awaited(condition: Callable[[], bool], what: Callable[[], str], within_s: float = 240.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


def test_every_command_of_the_page_says_where_it_runs() -> None:
    blocks = blocks_of(PAGE)
    assert len([block for block in blocks if block.mark is None]) == NOT_RUN
    assert all("pip install" in block.text for block in blocks if block.mark is None)
    assert {name for block in blocks for name in block.where} == set(NAMES)


def test_the_hosts_see_what_the_page_says_they_see(machines: Machines) -> None:
    for name in NAMES:
        assert machines.run(name, "hostname").strip() == name
        assert machines.run(name, "getent hosts head").split() == ["10.77.0.1", "head"]
        machines.run(name, "touch ~/mine /tmp/mine")
        seen = machines.run(name, f"ls -d {STORAGE}/models {machines.shared}/models 2> /dev/null || true").split()
        assert seen == ([] if name == "laptop" else [f"{STORAGE}/models"])
    assert all((host.private / "mine").exists() for host in machines.by_name.values())


def test_the_page_leads_to_a_finished_job(machines: Machines) -> None:
    """Every block in its order, and after some of them what the page says of it."""
    checks = {
        "ray status": _check_ray,
        "fleetune logs first -f": _check_first_job,
        "fleetune drain": _check_drained,
        "fleetune why second": _check_waits,
        "fleetune uncordon": _check_goes_on,
        "VACUUM INTO": _check_backup,
        "fleetune gc": _check_gc,
    }
    for block in blocks_of(PAGE):
        said = machines.carry_out(block)
        for snippet in [snippet for snippet in checks if snippet in block.text and block.mark]:
            checks.pop(snippet)(machines, said)
    assert checks == {}


def _check_ray(machines: Machines, said: str) -> None:
    awaited(lambda: "0.0/4.0 CPU" in machines.run("head", "ray status"), lambda: said)
    mode = machines.run("worker-1", "stat -c %a ~/.ray/auth_token; ls /srv/fleetune")
    assert mode.split() == ["600", "data", "models"]
    without = "import urllib.request as u; u.urlopen('http://127.0.0.1:8265/api/jobs/', timeout=20)"
    assert "401" in machines.run("head", f'python -c "{without}" 2>&1 || true')


def _check_first_job(machines: Machines, said: str) -> None:
    job = machines.jobs()["first"]
    assert job["state"] == "succeeded" and job["submitted_by"] == "anna", (job, machines.server_output())
    assert "output | " in said and "rank-0" not in said, said
    full = machines.run("laptop", "FLEETUNE_URL=http://head:8400 fleetune logs first --source all")
    assert {"output", "rank-0"} <= {line.split()[0].rstrip("|:") for line in full.splitlines() if line}, full
    root = machines.shared / "runs" / str(job["run"]).rpartition("/")[2]
    outcome = read_outcome(JobPaths(str(root)))
    assert outcome is not None and outcome.status is Status.SUCCEEDED
    assert [record["step"] for record in read_journal(str(root / "metrics"))] == [1, 2, 3, 4, 5]
    assert (root / "model/model.safetensors").exists()
    other = machines.run(
        "laptop", "FLEETUNE_URL=http://head:8400 fleetune submit job.yaml --set data.train=/mine 2>&1 || true"
    )
    assert "/mine" in other and "fleetune upload" in other and "/srv/fleetune" in other, other
    assert [name for name in NAMES if _has_run_a_worker(machines, name)] == ["worker-1", "worker-2"]


def _has_run_a_worker(machines: Machines, name: str) -> bool:
    logs = (machines.by_name[name].private / "ray").glob("session_2*/logs/worker-*")
    return any(b"RayTrainWorker" in file.read_bytes() for file in logs)


def _check_drained(machines: Machines, said: str) -> None:
    assert "drained" in said and "new driver" in said, said


def _check_waits(machines: Machines, said: str) -> None:
    assert machines.jobs()["second"]["state"] == "queued"
    assert "takes nothing new" in said and "2 workers of 2 CPU" in said, said


def _check_goes_on(machines: Machines, said: str) -> None:
    """The server is restarted while the job runs: it goes on, and is known afterwards."""
    assert "drain" not in said, said
    awaited(lambda: machines.state("second") is not State.QUEUED, machines.server_output)
    machines.stop_server()
    (serve,) = [block for block in blocks_of(PAGE) if block.mark == "on head, goes on"]
    machines.start_server(serve)
    awaited(lambda: machines.state("second") in ENDED, machines.server_output, 400.0)
    job = machines.jobs()["second"]
    assert (job["state"], job["attempt"]) == ("succeeded", 1), (job, machines.server_output())


def _check_backup(machines: Machines, said: str) -> None:
    (file,) = (machines.shared / "backups").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    with contextlib.closing(sqlite3.connect(file)) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert store.execute("SELECT count(*) FROM jobs").fetchone() == (2,)


def _check_gc(machines: Machines, said: str) -> None:
    assert "first-" in said and "nothing was removed" in said, said
    for goes, left in (("--checkpoints-only", 2), ("", 0)):  # the server is asked, and knows that both jobs have ended
        machines.run("head", f"fleetune gc --storage {STORAGE}/runs --older-than 0s {goes}")
        assert list((machines.shared / "runs").glob("*/checkpoints/*")) == []
        assert len(list((machines.shared / "runs").glob("*/spec.json"))) == left
        assert len(list((machines.shared / "runs").glob("*/model/model.safetensors"))) == left
