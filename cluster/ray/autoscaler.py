"""Ray's autoscaler: reads how far it may extend a cluster, and sends it the demand.

The types of nodes that it may add are only in its configuration file (`ray up` writes it on the head; see Ray's
"Cluster YAML"). The autoscaler knows one demand for the whole cluster, and keeps it until it gets another one: the
demand of `ray.autoscaler.sdk.request_resources`. Here it is written by a separate process, without a Ray driver.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.capacity.inventory import Growth, Node, NodeType
from cluster.errors import BackendUnreachable, InputError
from cluster.ray.bundles import Bundle, accelerator_of
from cluster.ray.raylets import command_lines, raylet_of_session
from cluster.ray.session_record import ask_ray
from cluster.text import one_line

TYPE_LABEL = "ray.io/accelerator-type"
_PROGRAM = "/monitor.py"
_LOOKED_FOR_EVERY_S = 30.0
_USUAL_WORKERS = 2  # Ray's default for max_workers
_LARGEST_FILE = 1 << 20
_MOST = 1_000_000


class Autoscaler:
    """The autoscaler of one cluster, used on the machine of its head."""

    def __init__(self, session: Callable[[], str], gcs: str, file: Path | None = None) -> None:
        """
        Args:
            session: returns the name of the cluster's current session; raises BackendUnreachable.
            gcs: host:port of the head service, in case the head does not run on this machine.
            file: the autoscaler's configuration file; None: as given on the command line of its process.
        """
        self.session, self._gcs, self._given = session, gcs, file
        self._file = file
        self._look_again_s = 0.0
        self._growth = Growth()
        self._mark: tuple[Path, int] | None = None
        self.trouble = ""  # why its file cannot be used; '' if it can

    def growth(self) -> Growth:
        """Return how far the cluster may grow. If the file or the process is missing, return what was known before."""
        if self._given is None and time.monotonic() >= self._look_again_s:
            self._look_again_s = time.monotonic() + _LOOKED_FOR_EVERY_S
            try:
                self._file = config_file(self.session()) or self._file
            except BackendUnreachable:
                return self._growth
        if self._file is None:
            return self._growth
        try:
            mark = (self._file, self._file.stat().st_mtime_ns)
            if mark != self._mark:
                self._growth, self._mark, self.trouble = read_growth(self._file), mark, ""
        except (OSError, InputError) as error:
            self.trouble = f"{self._file}: {getattr(error, 'strerror', error)}"
        return self._growth

    def check(self) -> None:
        """Check the given file. Raises InputError: it cannot be used."""
        if self._given is None:
            return
        try:
            found = read_growth(self._given)
        except (OSError, InputError) as error:
            raise InputError(f"--autoscaler {self._given}: {getattr(error, 'strerror', error)}") from error
        if not found.types:
            raise InputError(
                f"--autoscaler {self._given}: no entry of available_node_types says under `resources` what such a node "
                "has"
            )

    def ask(self, bundles: Sequence[Bundle]) -> str:
        """Demand a cluster with room for all bundles at once; an empty demand withdraws it. Returns the session's name.

        Raises:
            BackendUnreachable, MachinesFailed: the autoscaler may not have been told.
        """
        session = self.session()
        raylet = raylet_of_session(session, trusted=True)
        gcs = raylet.gcs if raylet is not None else self._gcs
        ask_ray("demand", gcs, given=json.dumps(list(bundles)))
        return session


def config_file(session: str) -> Path | None:
    """Return the configuration file of a session's autoscaler on this machine; None: there is no such autoscaler.

    Only processes of root and of this user are trusted.
    """
    for process in command_lines():
        if process.user in (0, os.getuid()) and any(one.endswith(_PROGRAM) for one in process.arguments[:4]):
            options = [one for one in process.arguments if one.startswith("--")]
            given = dict(one.removeprefix("--").partition("=")[::2] for one in options)
            if Path(given.get("logs-dir", "")).parent.name == session and given.get("autoscaling-config"):
                return _as_seen_by(process.user, process.folder, given["autoscaling-config"])
    return None


def _as_seen_by(user: int, folder: Path, path: str) -> Path:
    """Resolve a path of the autoscaler's command line, which may be like `~/ray_bootstrap_config.yaml`."""
    if path == "~" or path.startswith("~/"):
        return Path(pwd.getpwuid(user).pw_dir) / path[2:]
    return folder / path


def read_growth(file: Path) -> Growth:
    """Read a configuration file.

    Raises:
        OSError: it cannot be read.
        InputError: it is not a configuration file of Ray.
    """
    with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), encoding="utf-8") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise InputError("it is no file")
        try:
            text = opened.read(_LARGEST_FILE + 1)
            if len(text) > _LARGEST_FILE:
                raise InputError(f"it has more than {_LARGEST_FILE} characters, and is no file of Ray's")
            return growth_of(yaml.safe_load(text))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"it is no YAML: {one_line(error)}") from error


def growth_of(config: Any) -> Growth:
    """Parse Ray's cluster YAML. Types without resources are left out: these are unknown until such a node is up.

    Raises:
        InputError: it is not such a file.
    """
    types = config.get("available_node_types") if isinstance(config, Mapping) else None
    if not isinstance(types, Mapping):
        raise InputError(
            "it has no available_node_types, as Ray's cluster YAML does (of KubeRay, write such a file: docs/queue.md)"
        )
    most = _number(config.get("max_workers"), "max_workers", _USUAL_WORKERS)
    name, found, head = config.get("head_node_type"), [], None
    for key, one in types.items():
        if not isinstance(one, Mapping):
            raise InputError(f"available_node_types.{key} says nothing of its nodes")
        workers = _number(one.get("max_workers"), f"{key}.max_workers", 0 if key == name else most)
        kind = _type(str(key), one, min(workers, most))
        if key == name:
            head = kind
        if kind is not None and kind.most and (kind.node.cpus or kind.node.gpus):
            found.append(kind)
    return Growth(tuple(found), most, head)


def _type(name: str, one: Mapping[str, Any], most: int) -> NodeType | None:
    resources, labels = one.get("resources") or {}, one.get("labels") or {}
    if not isinstance(resources, Mapping) or not isinstance(labels, Mapping):
        raise InputError(f"{name}: resources and labels are names with values")
    if not resources:
        return None
    asks = accelerator_of(map(str, resources))
    accelerator = asks or labels.get(TYPE_LABEL)
    cpus, gpus = (_number(resources.get(what), f"{name}.resources.{what}", 0) for what in ("CPU", "GPU"))
    return NodeType(Node(name, cpus, gpus, str(accelerator) if accelerator and gpus else None), most, asks)


def _number(value: Any, what: str, usual: int) -> int:
    """Parse a number. Raises InputError."""
    if value is None:
        return usual
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= _MOST:
        raise InputError(f"{what}: a number from 0 to {_MOST} is wanted, and it is {str(value)[:50]}")
    return int(number)
