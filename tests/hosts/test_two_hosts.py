"""`fleetune run` on a cluster of two hosts, each with its own address, /tmp and home, that cannot do what it asks."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.hosts import BIN, Host, available, hosts, inside
from tests.support.raycluster import WITHOUT_LOG_MONITOR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs root, iproute2 and util-linux to make hosts"),
]


@dataclass(frozen=True)
class Cluster:
    head: Host
    worker: Host
    shared: pathlib.Path  # seen by both hosts under the same name

    def fleetune(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.head.run(str(BIN / "fleetune"), *arguments, "--address", f"{self.head.address}:6379", timeout=400)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two CPUs: a worker of two CPUs fills one."""
    shared = pathlib.Path(tempfile.mkdtemp(prefix="fleetune-shared-", dir="/var/tmp"))
    token = shared / "token"
    token.write_text(secrets.token_hex(32))
    tiny.save_model(shared / "llama", "llama")
    tiny.write_text(shared / "text.jsonl", 300)
    try:
        with hosts(2, shared, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as (head, worker):
            ray = str(BIN / "ray")
            _keep_up(
                head, lambda: _answers(head), ray, "start", "--head", "--node-ip-address", head.address, "--port",
                "6379", "--num-cpus", "2", "--include-dashboard", "false", *WITHOUT_LOG_MONITOR, "--block",
            )  # fmt: skip
            _keep_up(
                worker, lambda: _is_started(worker) and _nodes(head) == 2, ray, "start", "--address",
                f"{head.address}:6379", "--node-ip-address", worker.address, "--num-cpus", "2", *WITHOUT_LOG_MONITOR,
                "--block",
            )  # fmt: skip
            yield Cluster(head, worker, shared)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _answers(head: Host) -> bool:
    with contextlib.suppress(OSError), inside(head):
        socket.create_connection((head.address, 6379), 2).close()
        return True
    return False


def _is_started(host: Host) -> bool:
    """Whether `ray start` says so. Cheaper than a program that connects to Ray at each look."""
    return b"will now block" in (host.private / "out").read_bytes()


def _nodes(head: Host) -> int:
    code = (
        f"import ray; ray.init(address='{head.address}:6379', log_to_driver=False);"
        "print('nodes', sum(node['Alive'] for node in ray.nodes()))"
    )
    found = [line for line in head.run(str(BIN / "python"), "-c", code).stdout.splitlines() if line.startswith("nodes")]
    return int(found[-1].split()[1]) if found else 0


def _keep_up(host: Host, reached: Callable[[], bool], *command: str) -> None:
    """Start a node, and again if it gives up: on a busy machine Ray's own time-outs may be too short."""
    process = host.start(*command)
    deadline = time.monotonic() + 240
    while not reached():
        told = (host.private / "out").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{host.name} did not come up: {told}"
        if process.poll() is not None:
            process = host.start(*command)
        time.sleep(1)


def _spec(cluster: Cluster, storage: str) -> str:
    spec = tiny.spec_of(
        cluster.shared / "unused", cluster.shared / "llama", cluster.shared / "text.jsonl", storage_path=storage,
        resources__cpus_per_worker=2, train__max_steps=5, train__global_batch_size=4,
        train__per_device_train_batch_size=2, data__eval_fraction=0.2,
    )  # fmt: skip
    file = cluster.shared / f"job-{secrets.token_hex(2)}.json"
    file.write_bytes(dump_spec(spec))
    return str(file)


def test_storage_that_is_not_shared_is_named(cluster: Cluster) -> None:
    """Each host's /tmp is its own: the worker on the other host cannot see the run."""
    done = cluster.fleetune("run", _spec(cluster, "/tmp/not-shared"))
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "the same storage on every node" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stdout + done.stderr


def test_a_gang_larger_than_the_cluster_is_refused_at_once(cluster: Cluster) -> None:
    spec = _spec(cluster, str(cluster.shared / "runs"))
    began = time.monotonic()
    done = cluster.fleetune("run", spec, "--set", "resources.num_workers=3")
    assert done.returncode == 2
    assert "the most that would fit is resources.num_workers: 2" in " ".join(done.stdout.split() + done.stderr.split())
    assert time.monotonic() - began < 240  # it does not wait for more nodes
