"""A Ray head of a test's own, with token authentication on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.processes import free_port, processes_below, processes_with, start_until

RAY = pathlib.Path(sys.executable).with_name("ray")
# What a Ray of the tests does not do, since nobody looks at it: forward logs to drivers, start workers before somebody
# needs one, and measure its host every few seconds. Each costs seconds of a core.
WITHOUT_LOG_MONITOR = ("--include-log-monitor", "false")
LEAN = {"RAY_prestart_worker_first_driver": "0", "REPORTER_UPDATE_INTERVAL_MS": "60000"}
COMES_UP_S, ASKED_S, ENDS_S = 240.0, 3.0, 120.0  # `ray start --block` takes half a minute to end when asked


@dataclass(frozen=True)
class RayHead:
    dashboard: str
    gcs: str
    token: str
    temp: pathlib.Path


@contextlib.contextmanager
def ray_head(num_cpus: int = 4, **environment: str) -> Iterator[RayHead]:
    """Up and answering; at the end nothing of it is left, whatever it has started."""
    temp = pathlib.Path(f"/tmp/ft-{secrets.token_hex(3)}")  # socket names must stay short
    temp.mkdir(mode=0o700)
    token, gcs, dashboard = secrets.token_hex(32), free_port(), free_port()
    (temp / "token").write_text(token)
    (temp / "token").chmod(0o600)
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(temp / "token"),
        "RAY_TMPDIR": str(temp / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        **LEAN,
        **environment,
    }
    command = [
        str(RAY), "start", "--head", "--node-ip-address", "127.0.0.1", "--port", str(gcs), "--dashboard-port",
        str(dashboard), "--dashboard-agent-listen-port", str(free_port()), "--num-cpus", str(num_cpus),
        "--temp-dir", str(temp / "ray"), *WITHOUT_LOG_MONITOR, "--block",
    ]  # fmt: skip
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = RayHead(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token, temp)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        _end_what_is_left(temp)
        started.append(subprocess.Popen(command, env=env, start_new_session=True, **quiet))
        return started[-1]

    try:
        start_until(lambda: _is_up(head), start, "the head is up", COMES_UP_S)
        yield head
    finally:
        process = started[-1]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ASKED_S)
        _end_what_is_left(temp)
        process.wait(ENDS_S)
        shutil.rmtree(temp, ignore_errors=True)


def _is_up(head: RayHead) -> bool:
    """Whether it knows its node, and could take a job."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {head.token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return b'"ALIVE"' in answer.read()
    except (OSError, urllib.error.URLError):
        return False


def _end_what_is_left(temp: pathlib.Path) -> None:
    """Kill the head's processes: its folder is in their environment, or they have a log in it open."""
    mark = f"RAY_TMPDIR={temp / 'ray'}"
    deadline = time.monotonic() + ENDS_S
    while left := {*processes_with(mark), *processes_below(temp)}:
        assert time.monotonic() < deadline, f"these do not end: {left}"
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
