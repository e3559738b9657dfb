"""Servers of a queue as real processes, killed and frozen: `python -m tests.support.queueservers STORE WHERE`.

One process imports everything and forks a server for each line of its standard input, so that a server is there within
milliseconds. It prints the server's process id.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from cluster.backend import Backend, Launch
from cluster.capacity.inventory import Inventory, Node
from cluster.local.backend import LocalBackend
from cluster.ray.backend import RayJobsBackend
from cluster.testing import FakeBackend, ServedCluster
from orchestrator.controller.controller import Controller
from orchestrator.controller.leadership import LeaderElection
from orchestrator.queue.clock import SystemClock, Timing
from orchestrator.queue.records import Job
from orchestrator.queue.store import Store
from orchestrator.server.passes import run_passes
from orchestrator.store import open_store
from tests.support.queueworld import launch_of

TERM_S = 0.4
ROOT = Path(__file__).resolve().parents[2]


def machines(where: str) -> Backend:
    """A made-up cluster at a socket; a dashboard of Ray and its token; or this machine with a folder, as two nodes."""
    if where.startswith("http"):
        dashboard, token = where.split()
        return RayJobsBackend(dashboard, token=token)
    path = Path(where)
    if path.is_dir():
        return LocalBackend(path, Inventory((Node("n1", cpus=8, gpus=4), Node("n2", cpus=8, gpus=4))))
    return FakeBackend(ServedCluster(where))


def launch(store: Store, job: Job) -> Launch:
    """The spec of a job for real processes is a shell's program."""
    made_up, spec = launch_of(job), store.spec(job.job_id)
    return made_up if spec == "{}" else Launch(job.submission, ("sh", "-c", spec), metadata=made_up.metadata)


def main(store_path: str, where: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(store_path, where, line.strip())
        print(pid, flush=True)


def run(store_path: str, where: str, name: str) -> None:
    clock, store = SystemClock(), open_store(store_path)
    controller = Controller(
        store,
        machines(where),
        clock,
        LeaderElection(store, clock, name, f"http://{name}", TERM_S),
        functools.partial(launch, store),
        timing=Timing(grace_s=0.5, slow_s=1.0, doubt_s=1.0),
    )
    run_passes(controller.step, threading.Event(), threading.Event(), print, every_s=0.02)


class Servers:
    """Starts, freezes and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._started = 0
        self._alive: set[int] = set()

    def start(self) -> int:
        self._started += 1
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"server-{self._started}\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self._alive.add(pid)
        return pid

    def send(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)
        if number is signal.SIGKILL:
            self._alive.discard(pid)

    def kill_all(self) -> None:
        for pid in list(self._alive):
            self.send(pid, signal.SIGKILL)


@contextlib.contextmanager
def servers(store_path: Path, where: Path | str) -> Iterator[Servers]:
    command = [sys.executable, "-m", "tests.support.queueservers", str(store_path), str(where)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found = Servers(process)
    try:
        yield found
    finally:
        found.kill_all()
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main(*sys.argv[1:])
