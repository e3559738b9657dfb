"""A Ray head whose autoscaler adds nodes for real: raylets on the head's own host, made by Ray's provider for tests."""

from __future__ import annotations

import functools
import json
import pathlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.hosts import BIN, Host, answered
from tests.support.processes import start_until
from tests.support.raycluster import WITHOUT_LOG_MONITOR

HEAD_ID = f"{0:056x}".replace("0", "f", 51)  # as the provider knows it, and its type
HEAD_TYPE = "ray.head.default"
PORT, DASHBOARD_PORT = 6379, 8265
COMES_UP_S = 240.0


@dataclass(frozen=True)
class Scaled:
    """Nodes of two CPUs each are added to a head that has none."""

    host: Host
    dashboard: str
    token: str

    def nodes(self) -> list[dict[str, Any]]:
        """What Ray says of those that are alive."""
        answer = answered(self.host, f"{self.dashboard}/api/v0/nodes?detail=1", self.token)
        found = [] if answer is None else json.loads(answer)["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]


def autoscaled(host: Host, folder: pathlib.Path, version: int, most: int = 2) -> Scaled:
    """Up and answering. It ends with its host.

    Args:
        folder: that the host sees.
        version: of Ray's autoscaler, 1 or 2.
        most: nodes beside the head.
    """
    file, token = folder / "token", secrets.token_hex(32)
    file.write_text(token)
    file.chmod(0o600)
    config = folder / "cluster.yaml"
    config.write_text(yaml.safe_dump(_config(f"{host.address}:{PORT}", most)))
    host.env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(file),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": str(version - 1),
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    command = [
        str(BIN / "ray"), "start", "--head", "--node-ip-address", host.address, "--port", str(PORT),
        "--dashboard-port", str(DASHBOARD_PORT), "--num-cpus", "0",
        "--autoscaling-config", str(config), *WITHOUT_LOG_MONITOR, "--block",
    ]  # fmt: skip
    found = Scaled(host, f"http://127.0.0.1:{DASHBOARD_PORT}", token)
    start_until(
        lambda: len(found.nodes()) == 1, lambda: host.start(*command), "the head is up", COMES_UP_S,
        functools.partial(time.sleep, 0.5),
    )  # fmt: skip
    return found


def _config(gcs: str, most: int) -> dict[str, Any]:
    empty_lists = (
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
    )  # fmt: skip
    return {
        "cluster_name": "made-up",
        "max_workers": most,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "foreground_node_launch": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty_lists},
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
    }
