"""Ray's own autoscaler, versions 1 and 2, adds the nodes that the queue wants, and takes them away again."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.queue.states import ENDED, State
from orchestrator.store import open_store
from tests.support.autoscaling import autoscaled
from tests.support.gangs import ROOT
from tests.support.hosts import BIN, Host, answered, available, hosts
from tests.support.processes import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not available(), reason="needs root, iproute2 and util-linux to make hosts"),
]

SERVER = "http://127.0.0.1:8400"


@pytest.fixture
def host() -> Iterator[Host]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fleetune-scaled-", dir="/var/tmp"))
    try:
        with hosts(1, folder) as (host,):
            yield host
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def a_second() -> None:
    time.sleep(1.0)


class Queue:
    """A server on the host, and the commands of its users there."""

    def __init__(self, host: Host, dashboard: str) -> None:
        self._host = host
        host.start(str(BIN / "fleetune"), "serve", "--address", dashboard, "--shared", str(host.private.parent))
        wait_for((self._home / "server.json").exists, "the server says where it is", 240.0, a_second)
        wait_for(lambda: answered(host, f"{SERVER}/readyz") is not None, "the server is up", 240.0, a_second)

    @property
    def log(self) -> str:
        return (self._host.private / "out").read_text()

    def fleetune(self, *words: str) -> Any:
        return self._host.run(str(BIN / "fleetune"), *words)

    def growth(self) -> str:
        """What the server says that the autoscaler may add. Cheaper than a start of `fleetune` at each look."""
        answer = answered(self._host, f"{SERVER}/v1/nodes")
        return "" if answer is None else str(json.loads(answer)["growth"])

    def submit(self, name: str, workers: int) -> Any:
        spec = self._host.private.parent / f"{name}.json"
        resources = {"num_workers": workers, "cpus_per_worker": 2, "gpus_per_worker": 0}
        gang = {"kind": "command", "name": name, "command": ["true"], "working_dir": str(ROOT), "resources": resources}
        spec.write_text(json.dumps(gang))
        return self.fleetune("submit", str(spec), "--json")

    def state(self, job_id: str) -> State:
        """As the store has it."""
        with contextlib.closing(open_store(str(self._home / "queue.db"))) as store:
            return store.job(job_id).state

    @property
    def _home(self) -> pathlib.Path:
        return self._host.private / ".fleetune"


@pytest.mark.parametrize("version", [1, 2])
def test_nodes_come_for_a_gang_that_waits_and_go_when_nobody_does(host: Host, version: int) -> None:
    """The only one with Ray's autoscaler, in both of its versions."""
    cluster = autoscaled(host, host.private.parent, version)
    queue = Queue(host, cluster.dashboard)
    grows = "Ray's autoscaler may add 2 more nodes (2 x worker: 2 CPU)"
    wait_for(lambda: grows in queue.growth(), "the server knows the autoscaler", 240.0, a_second)
    assert grows in queue.fleetune("nodes").stdout
    refused = queue.submit("large", workers=3)
    assert refused.returncode == 2, refused.stderr
    assert "Ray's autoscaler may add 2 more nodes (at most 2 of worker)" in refused.stderr
    assert "the most that would fit is resources.num_workers: 2" in refused.stderr

    submitted = queue.submit("gang", workers=2)
    assert submitted.returncode == 0, submitted.stderr
    job_id = json.loads(submitted.stdout)[0]["job_id"]
    told = queue.fleetune("why", job_id).stdout
    assert "machines that are not there" not in told, told
    wait_for(lambda: queue.state(job_id) in ENDED, "it has run", 240.0, a_second)
    done = json.loads(queue.fleetune("status", job_id, "--json").stdout)
    assert done["state"] == "succeeded", queue.fleetune("logs", job_id).stdout
    assert f"{job_id}: Ray's autoscaler is asked for room, 2 x (2 CPU) in all" in queue.log
    wait_for(lambda: "is asked for nothing from now on" in queue.log, "the wish is withdrawn", 240.0)
    wait_for(lambda: len(cluster.nodes()) == 1, "the nodes are gone again", 240.0, a_second)
    assert "Traceback" not in queue.log
