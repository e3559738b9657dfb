"""Where a soak takes place: a Ray head and two nodes on hosts of their own, a queue's server beside the head.

Only one folder is common to the hosts. They reach each other and nothing else, so this process goes into the head's
network for as long as it takes to connect to the server or to Ray's dashboard there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support import tiny
from tests.support.gangs import ROOT
from tests.support.hold import Hold
from tests.support.hosts import BIN, Host, hosts, inside, name_hosts, processes_of
from tests.support.processes import command_of, originals
from tests.support.raycluster import WITHOUT_LOG_MONITOR

NAMES = ("head", "worker-1", "worker-2")
CPUS = 2  # of each worker host
UP_WITHIN_S, NODE_WITHIN_S = 240.0, 60.0
SERVER, DASHBOARD = "http://127.0.0.1:8400", "http://127.0.0.1:8265"
PROTECTED_S = 20.0
OBJECT_STORE_BYTES = str(200 * 1024 * 1024)
_ANSWER_S = 5.0


class Unreachable(Exception):
    """The server, or Ray's dashboard, gives no answer."""


@dataclass
class Node:
    """A worker host, and whether it has to be there.

    Attributes:
        since: when Ray was started on it last (monotonic).
        away: something was done to it that takes it away; whoever did it brings it back.
    """

    host: Host
    name: str
    process: subprocess.Popen[Any] | None = None
    since: float = 0.0
    away: bool = False
    cut_at: float | None = None
    down: bool = False  # its link


@dataclass
class World:
    """The hosts, and what is done to them from outside."""

    folder: Path
    head: Host
    nodes: list[Node]
    token: str
    hold: Hold  # of trainings
    ray_of_head: subprocess.Popen[Any] | None = None
    server: subprocess.Popen[Any] | None = None
    frozen: bool = False
    starts: int = 0
    clients: dict[str, httpx.Client] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    # The server.

    def start_server(self) -> None:
        words = ["serve", "--address", DASHBOARD, "--shared", str(self.folder), "--protected-s", str(PROTECTED_S)]
        command = self.head.command(str(BIN / "fleetune"), *words)
        with open(self.folder / "server.log", "ab") as log:
            self.server = subprocess.Popen(
                command, env=self.head.env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1

    def kill_server(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGKILL)
            self.server.wait()
        self.server, self.frozen = None, False

    def freeze_server(self, frozen: bool) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
            self.frozen = frozen

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Raises Unreachable; httpx.HTTPStatusError, which has the answer."""
        if self.server is None or self.frozen:
            raise Unreachable("the server was killed or frozen")
        answer = self._ask(SERVER, method, path, body)
        if answer.status_code in (429, 502, 503, 504):
            raise Unreachable(answer.text)
        answer.raise_for_status()
        return answer.json()

    def ready(self) -> bool:
        try:
            return bool(self.api("GET", "/readyz"))
        except (Unreachable, httpx.HTTPStatusError):
            return False

    # Ray.

    def listed(self, what: str) -> list[dict[str, Any]]:
        """Of Ray's state API."""
        answer = self._ray(f"/api/v0/{what}?detail=1&limit=10000")
        return list(answer["data"]["result"]["result"])

    def used_cpus(self) -> dict[str, float]:
        """By node's id; up to 5 s old."""
        report = self._ray("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]
        return {node: float(used.get("CPU", (0, 0))[0]) for node, used in report["usageByNode"].items()}

    def living(self) -> dict[str, str]:
        """Ids of Ray's nodes, by name. Of two of one name, one of which Ray still takes for alive, the newer one."""
        alive = [node for node in self.listed("nodes") if node["state"] == "ALIVE"]
        return {
            str(one["node_name"]): str(one["node_id"]) for one in sorted(alive, key=lambda one: one["start_time_ms"])
        }

    def start_head(self) -> None:
        words = ["start", "--head", "--node-name", "head", "--node-ip-address", self.head.address, "--port", "6379"]
        words += ["--num-cpus", "0", "--object-store-memory", OBJECT_STORE_BYTES, *WITHOUT_LOG_MONITOR, "--block"]
        self.ray_of_head = self.head.start(str(BIN / "ray"), *words)

    def start_node(self, node: Node) -> None:
        end_all(node)
        words = ["start", "--address", f"{self.head.address}:6379", "--node-name", node.name, "--node-ip-address"]
        words += [node.host.address, "--num-cpus", str(CPUS), "--object-store-memory", OBJECT_STORE_BYTES]
        words += [*WITHOUT_LOG_MONITOR, "--block"]
        node.process = node.host.start(str(BIN / "ray"), *words)
        node.since = time.monotonic()

    def drain_by_ray(self, node: Node, node_id: str, deadline_s: float) -> None:
        words = ["drain-node", "--address", f"{self.head.address}:6379", "--node-id", node_id]
        words += ["--deadline-remaining-seconds", str(int(deadline_s)), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        self.head.start(str(BIN / "ray"), *words, "--reason-message", "soak")

    def link(self, node: Node, up: bool) -> None:
        subprocess.run(["ip", "-n", node.host.name, "link", "set", "eth0", "up" if up else "down"], check=True)
        node.down = not up

    def _ray(self, path: str) -> Any:
        answer = self._ask(DASHBOARD, "GET", path)
        if answer.status_code != 200:
            raise Unreachable(answer.text)
        return answer.json()

    def _ask(self, base: str, method: str, path: str, body: Any = None) -> httpx.Response:
        client = self.clients.get(base)
        if client is None:
            headers = {"Authorization": f"Bearer {self.token}"} if base == DASHBOARD else {}
            client = httpx.Client(base_url=base, timeout=_ANSWER_S, headers=headers, trust_env=False)
            self.clients[base] = client
        try:
            with inside(self.head):
                return client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise Unreachable(f"{method} {path}: {type(error).__name__}: {error}") from error

    # Processes.

    def drivers(self) -> dict[int, str]:
        """Submission, which is job and attempt, of each driver, by its pid."""
        return _processes(self.head, b"jobs.drivers.attempt", "FLEETUNE_SUBMISSION")

    def programs(self, node: Node) -> dict[int, str]:
        """Job of each program of a command on a node, by its pid."""
        return _processes(node.host, b"tests/soak/program.py", "FLEETUNE_JOB")

    def workers(self, node: Node) -> list[int]:
        """Ray's processes on a node with a training or a program in them."""
        return originals(
            pid for pid in processes_of(node.host) if command_of(pid).startswith((b"ray::RayTrain", b"ray::Host"))
        )

    def raylets(self, node: Node) -> list[int]:
        return [pid for pid in processes_of(node.host) if b"/raylet/raylet\0" in command_of(pid)]


@contextlib.contextmanager
def world() -> Iterator[World]:
    """All of it up. At the end nothing is left, but for its folder where the soak was not content."""
    folder = Path(tempfile.mkdtemp(prefix="fleetune-soak-", dir="/var/tmp"))
    for name in ("journals", "runs", "server"):
        (folder / name).mkdir()
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed talks as it is imported
        tiny.save_model(folder / "llama", "llama")
    tiny.write_text(folder / "text.jsonl", 300)
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    env |= {"FLEETUNE_HOME": str(folder / "server"), "TMPDIR": "/tmp", "OMP_NUM_THREADS": "1"}
    hold = Hold(folder)
    env |= hold.environment
    with hosts(len(NAMES), folder, **env) as made:
        by_name = dict(zip(NAMES, made, strict=True))
        name_hosts(by_name, folder)
        nodes = [Node(host, name) for name, host in by_name.items() if name != "head"]
        found = World(folder, by_name["head"], nodes, token, hold)
        try:
            until(lambda: _head_is_up(found), "Ray's head is up", UP_WITHIN_S)
            until(lambda: _all_up(found), "Ray's nodes are up", UP_WITHIN_S)
            found.start_server()
            until(found.ready, "the server is ready", UP_WITHIN_S)
            yield found
        finally:
            for client in found.clients.values():
                client.close()
            found.kill_server()


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _answered(found: World) -> dict[str, str]:
    try:
        return found.living()
    except Unreachable:
        return {}


def _head_is_up(found: World) -> bool:
    """Starts it, and again if it gives up: see `_all_up`."""
    if found.ray_of_head is None or found.ray_of_head.poll() is not None:
        found.start_head()
    return "head" in _answered(found)


def _all_up(found: World) -> bool:
    """Starts what is not: on a busy machine Ray's own time-outs may be too short, and it gives up."""
    for node in found.nodes:
        if node.process is None or node.process.poll() is not None:
            found.start_node(node)
    return len(_answered(found)) == len(NAMES)


def until(true: Callable[[], object], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {within_s:.0f} s it is still not true that {what}")
        time.sleep(0.2)


def variable_of(pid: int, name: str) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((line.decode().partition("=")[2] for line in lines if line.startswith(f"{name}=".encode())), None)


def _processes(host: Host, mark: bytes, variable: str) -> dict[int, str]:
    """Those whose command has the mark, by a variable of their environment; what guards a program has it as well."""
    marked = originals(pid for pid in processes_of(host) if _is(command_of(pid), mark))
    found = {pid: variable_of(pid, variable) for pid in marked}
    return {pid: value for pid, value in found.items() if value is not None}


def _is(command: bytes, mark: bytes) -> bool:
    words = command.split(b"\0")
    return b"python" in words[0] and any(word.endswith(mark) for word in words[1:4])


def send(pids: Any, number: signal.Signals) -> int:
    """How many were there to get it."""
    there = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            there += 1
    return there


def end_all(node: Node) -> None:
    """Whatever runs on a worker host."""
    while pids := processes_of(node.host):
        send(pids, signal.SIGKILL)
        if node.process is not None:
            node.process.poll()
        time.sleep(0.1)


def shown(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("message", ""))
    except json.JSONDecodeError:
        return answer.text
