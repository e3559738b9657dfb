"""A Ray cluster of a head and two workers, each on a host of its own, and the queue's server on the head's host."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orchestrator.queue.records import Job
from orchestrator.store import open_store
from tests.support.gangs import PACED
from tests.support.hosts import BIN, Host, answered, end_what_is_left, hosts, name_hosts, processes_of
from tests.support.processes import command_of, originals
from tests.support.raycluster import WITHOUT_LOG_MONITOR

HEAD, WORKERS = "head", ("worker-1", "worker-2")
UP_WITHIN_S, LOOK_S = 240.0, 0.5
PROTECTED_S = 5.0  # after which a job may be stopped for another
# A node that is silent for so long is dead to Ray; by itself it waits for three times as long.
DEAD_AFTER_S = 15
QUICK = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}
_SEES_S = 3.0
_SERVER, _DASHBOARD = "http://127.0.0.1:8400", "http://127.0.0.1:8265"


def awaited(true: Callable[[], object], what: str, within_s: float, told: Callable[[], str] = str) -> float:
    """Returns once it is true, with the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, f"after {within_s} s it is still not true that {what}\n{told()}"
        time.sleep(LOOK_S)
    return time.monotonic() - began


@dataclass
class HostCluster:
    """Workers have two CPUs each, the head none."""

    hosts: dict[str, Host]
    shared: pathlib.Path  # seen by all hosts under the same name
    # Ray takes a head of another test's hosts, of the same address, for its own: it looks at all processes there are.
    port: int = field(default_factory=lambda: 6400 + secrets.randbelow(1500))
    server: subprocess.Popen[Any] | None = None
    rays: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    @property
    def head(self) -> Host:
        return self.hosts[HEAD]

    def told(self) -> str:
        """The end of what all of them have said."""
        outs = {name: host.private / "out" for name, host in self.hosts.items()}
        return "\n".join(f"{name}: {out.read_text(errors='replace')[-3000:]}" for name, out in outs.items())

    def start_ray(self, name: str) -> None:
        """Until it is up; again if it gives up, since on a busy machine Ray's own time-outs may be too short."""
        host, gcs = self.hosts[name], f"{self.head.address}:{self.port}"
        words = ["--address", gcs, "--num-cpus", "2"]
        if name == HEAD:
            words = ["--head", "--port", str(self.port), "--num-cpus", "0", "--num-gpus", "0"]
        words += ["--node-ip-address", host.address, "--node-name", name, *WITHOUT_LOG_MONITOR, "--block"]

        def up() -> bool:
            if name not in self.rays or self.rays[name].poll() is not None:
                begun = out.stat().st_size if out.exists() else 0
                self.rays[name] = host.start(str(BIN / "ray"), "start", *words)
                awaited(lambda: self._settled(name, begun), f"{name} has started or given up", UP_WITHIN_S, self.told)
            return self.rays[name].poll() is None and (name == HEAD or name in self.nodes())

        out = host.private / "out"
        self.rays.pop(name, None)
        awaited(up, f"{name} is up", UP_WITHIN_S, self.told)

    def start_rays(self, *names: str) -> None:
        """Several at once."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.start_ray, names))

    def _settled(self, name: str, begun: int) -> bool:
        """Whether `ray start` has given up; or all of its processes run, which it sees a moment after it says so."""
        if self.rays[name].poll() is not None:
            return True
        if b"will now block" not in (self.hosts[name].private / "out").read_bytes()[begun:]:
            return False
        time.sleep(_SEES_S)
        return True

    def power_off(self, name: str) -> None:
        """All of a host at once, but for the server, which may go on."""
        spared = self.server.pid if self.server is not None else None
        for pid in processes_of(self.hosts[name]):
            if pid != spared:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.rays[name].wait(120)

    def drain(self, name: str) -> None:
        """As Ray does itself when a machine is about to be taken away."""
        words = ["drain-node", "--address", f"{self.head.address}:{self.port}", "--node-id", self.known_nodes()[name]]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        done = self.head.run(str(BIN / "ray"), *words, "--deadline-remaining-seconds", "300")
        assert done.returncode == 0, done.stdout + done.stderr

    def start_server(self) -> None:
        words = ["serve", "--address", "auto", "--shared", str(self.shared), "--protected-s", str(PROTECTED_S)]

        def ready() -> bool:
            if self.server is None or self.server.poll() is not None:  # the dashboard may not be up yet
                self.server = self.head.start(str(BIN / "fleetune"), *words)
            return answered(self.head, f"{_SERVER}/readyz") is not None

        awaited(ready, "the server is ready", UP_WITHIN_S, self.told)

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(120)

    def fleetune(self, *words: str) -> str:
        done = self.head.run(str(BIN / "fleetune"), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def nodes(self) -> dict[str, str]:
        """Ids by name, as the server has them; none while it cannot say."""
        answer = answered(self.head, f"{_SERVER}/v1/nodes")
        return {} if answer is None else {node["name"]: node["node_id"] for node in json.loads(answer)["nodes"]}

    def known_nodes(self) -> dict[str, str]:
        """As `nodes`, once the server says it: it may stand still for longer than it is waited for."""
        found: list[dict[str, str]] = []

        def says() -> bool:
            found.append(self.nodes())
            return bool(found[-1])

        awaited(says, "the server says which nodes there are", UP_WITHIN_S, self.told)
        return found[-1]

    def ray_lists(self, what: str) -> list[dict[str, Any]]:
        """What there is by Ray's state API, with all that it says; nothing while it cannot say."""
        token = pathlib.Path(self.head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = answered(self.head, f"{_DASHBOARD}/api/v0/{what}?detail=1", token)
        return [] if answer is None else list(json.loads(answer)["data"]["result"]["result"])

    def job(self, job_id: str) -> Job:
        with contextlib.closing(open_store(str(self.head.private / ".fleetune/queue.db"))) as store:
            return store.job(job_id)

    def story(self, job_id: str) -> list[str]:
        with contextlib.closing(open_store(str(self.head.private / ".fleetune/queue.db"))) as store:
            return [f"{event.kind}: {event.message}" for event in store.events(job_id)]

    def trainers(self, name: str | None = None) -> list[int]:
        """Processes of workers of trainings; on one host, or on all."""
        there = [self.hosts[name]] if name is not None else list(self.hosts.values())
        return originals(pid for host in there for pid in processes_of(host) if b"RayTrainWorker" in command_of(pid))

    def drivers(self) -> list[int]:
        return originals(
            pid for pid in processes_of(self.head) if b"jobs.drivers.attempt" in command_of(pid).split(b"\0")
        )


@contextlib.contextmanager
def host_cluster() -> Iterator[HostCluster]:
    """All of it is up; nothing is left."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fleetune-faults-", dir="/var/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    shared = folder / "shared"
    shared.mkdir()
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": PACED, **QUICK}
    names = (HEAD, *WORKERS)
    try:
        with hosts(len(names), folder, **own) as made:
            found = HostCluster(dict(zip(names, made, strict=True)), shared)
            name_hosts(found.hosts, folder)
            try:
                found.start_ray(HEAD)
                found.start_server()
                found.start_rays(*WORKERS)
                yield found
            finally:
                for host in made:
                    end_what_is_left(host)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
