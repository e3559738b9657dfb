"""More nodes for a test's Ray head, all on this machine; each with its name in the environment of what runs there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.support.processes import processes_with, start_until
from tests.support.raycluster import COMES_UP_S, LEAN, RAY, WITHOUT_LOG_MONITOR, RayHead

NODE_NAME = "FLEETUNE_TEST_NODE"


@dataclass
class Nodes:
    """Ids by name."""

    head: RayHead
    ids: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """For a driver on this cluster."""
        return {
            "RAY_ADDRESS": self.head.gcs,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.head.temp / "token"),
        }

    def take_away(self, name: str) -> None:
        """Its raylet and all that runs there are killed."""
        for pid in processes_with(f"{NODE_NAME}={name}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ray_nodes(head: RayHead, *names: str, num_cpus: int = 2, **environment: str) -> Iterator[Nodes]:
    nodes, started = Nodes(head), list[subprocess.Popen[bytes]]()
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        for name in names:
            env = {
                **os.environ, **nodes.environment(), "RAY_TMPDIR": str(head.temp / "ray"),
                "RAY_USAGE_STATS_ENABLED": "0", **LEAN, NODE_NAME: name, **environment,
            }  # fmt: skip
            del env["RAY_ADDRESS"]
            command = [
                str(RAY), "start", "--address", head.gcs, "--node-ip-address", "127.0.0.1", "--num-cpus",
                str(num_cpus), "--labels", f"test-node={name}", *WITHOUT_LOG_MONITOR, "--block",
            ]  # fmt: skip

            def start(command: list[str] = command, env: dict[str, str] = env) -> subprocess.Popen[bytes]:
                started.append(subprocess.Popen(command, env=env, start_new_session=True, **quiet))
                return started[-1]

            start_until(partial(_find, nodes, name), start, f"node {name} is up", COMES_UP_S)
        yield nodes
    finally:
        for process in started:
            process.kill()
            process.wait()
        for name in names:
            nodes.take_away(name)


def _find(nodes: Nodes, name: str) -> bool:
    for node in ask(nodes.head, "/api/v0/nodes?detail=1"):
        if node["state"] == "ALIVE" and node["labels"].get("test-node") == name:
            nodes.ids[name] = node["node_id"]
    return name in nodes.ids


def ask(head: RayHead, path: str) -> list[dict[str, Any]]:
    """What Ray's state API lists."""
    request = urllib.request.Request(f"{head.dashboard}{path}", headers={"Authorization": f"Bearer {head.token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return list(json.load(answer)["data"]["result"]["result"])


def left_on_ray(head: RayHead) -> list[str]:
    """Placement groups and actors of jobs that are still there, but for those of Ray itself, which stay for good."""
    groups = [str(one["state"]) for one in ask(head, "/api/v0/placement_groups?detail=1") if one["state"] != "REMOVED"]
    actors = [str(one["class_name"]) for one in ask(head, "/api/v0/actors?detail=1") if one["state"] != "DEAD"]
    return groups + [name for name in actors if not name.startswith("_") and name != "PlacementGroupCleaner"]
