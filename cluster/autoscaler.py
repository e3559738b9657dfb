"""Ray's autoscaler: how far it may take a cluster, and what it is told that is wanted.

What it may add is in the file that it was started with (`ray up` writes it on the head; see Ray's "Cluster YAML"), and
nowhere in Ray's own store. It takes one wish at a time, for the whole cluster, and holds to it until it gets another:
that of `ray.autoscaler.sdk.request_resources`. Here it is written without a driver, by a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.bundles import TYPE_RESOURCE, Bundle
from cluster.errors import BackendUnreachable, InputError, MachinesFailed
from cluster.inventory import Growth, Node, NodeType
from cluster.raylets import raylet_of_session, words_of_processes

_PROGRAM = "/monitor.py"
_LOOKED_FOR_EVERY_S = 30.0
_ANSWERS_S = 60.0
_USUAL_WORKERS = 2  # Ray's own default for max_workers


class Autoscaler:
    """Of one cluster, seen from the machine of its head."""

    def __init__(self, session: Callable[[], str], gcs: str, file: Path | None = None) -> None:
        """
        Args:
            session: the name of the cluster's session, now. Raises BackendUnreachable.
            gcs: host:port of the head service, where the head does not run on this machine.
            file: what the autoscaler was started with; None: as the command line of its process says.
        """
        self._session, self._gcs, self._given = session, gcs, file
        self._file = file
        self._look_again_s = 0.0
        self._read: tuple[tuple[Path, int] | None, Growth] = (None, Growth())

    def growth(self) -> Growth:
        """How far it may go; of an autoscaler that is not there, or whose file cannot be read now: as known before."""
        if self._given is None and time.monotonic() >= self._look_again_s:
            self._look_again_s = time.monotonic() + _LOOKED_FOR_EVERY_S
            try:
                self._file = config_file(self._session())
            except BackendUnreachable:
                return self._read[1]
        if self._file is None:
            self._read = (None, Growth())
            return self._read[1]
        try:
            mark = (self._file, self._file.stat().st_mtime_ns)
            if mark != self._read[0]:
                self._read = (mark, growth_of(_parsed(self._file)))
        except (OSError, InputError):
            pass  # it is being written, or was never ours to read: `check` has said so at the start
        return self._read[1]

    def check(self) -> None:
        """Raises InputError: the file that was given cannot be used."""
        if self._given is None:
            return
        try:
            found = growth_of(_parsed(self._given))
        except OSError as error:
            raise InputError(f"--autoscaler {self._given}: {error.strerror}") from error
        except InputError as error:
            raise InputError(f"--autoscaler {self._given}: {error}") from error
        if not found.types:
            raise InputError(
                f"--autoscaler {self._given}: no entry of available_node_types says under `resources` what such a node "
                "has"
            )

    def session(self) -> str:
        """The name of the cluster's session, now. Raises BackendUnreachable."""
        return self._session()

    def ask(self, bundles: Sequence[Bundle]) -> str:
        """Wish for a cluster that has room for all of these at once; none: for nothing. The session's name.

        Raises:
            BackendUnreachable, MachinesFailed: it was not told.
        """
        session = self._session()
        raylet = raylet_of_session(session)
        gcs = raylet.gcs if raylet is not None else self._gcs
        words = [sys.executable, "-m", "cluster.ray_wish", gcs]
        try:
            done = subprocess.run(
                words, input=json.dumps(list(bundles)), capture_output=True, text=True, timeout=_ANSWERS_S
            )
        except subprocess.TimeoutExpired:
            raise MachinesFailed(f"Ray at {gcs} has not answered for {_ANSWERS_S:.0f} s") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["?"])[-1][:300]
            raise MachinesFailed(f"Ray at {gcs} does not answer: {last}")
        return session


def config_file(session: str) -> Path | None:
    """What the autoscaler of a session, on this machine, was started with; None: there is none that adds machines."""
    trusted = {0, os.getuid()}
    for owner, words in words_of_processes():
        if owner in trusted and any(word.endswith(_PROGRAM) for word in words[:4]):
            given = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
            if Path(given.get("logs-dir", "")).parent.name == session and given.get("autoscaling-config"):
                return Path(given["autoscaling-config"])
    return None


def growth_of(config: Any) -> Growth:
    """Of Ray's cluster YAML. Types that do not say what their nodes have are left out: nobody knows before one is up.

    Raises:
        InputError: it is no such file.
    """
    types = config.get("available_node_types") if isinstance(config, Mapping) else None
    if not isinstance(types, Mapping):
        raise InputError("it has no available_node_types, as Ray's cluster YAML does")
    head = config.get("head_node_type")
    try:
        most = int(config.get("max_workers", _USUAL_WORKERS))
        given = [_type(name, dict(one), head, most) for name, one in types.items()]
    except (TypeError, ValueError) as error:
        raise InputError(f"max_workers and resources are numbers: {error}") from error
    # The head is of its type: it is counted first, also where workers look the same.
    found = sorted((one for one in given if one is not None), key=lambda one: one.node.node_id != head)
    head_is_empty = any(one.node.node_id == head and not (one.node.cpus or one.node.gpus) for one in found)
    return Growth(tuple(found), most + (not head_is_empty))


def _type(name: str, one: Mapping[str, Any], head: str | None, most: int) -> NodeType | None:
    resources = one.get("resources")
    if not resources:
        return None
    kind = next((key.removeprefix(TYPE_RESOURCE) for key in resources if key.startswith(TYPE_RESOURCE)), None)
    node = Node(name, int(float(resources.get("CPU", 0))), int(float(resources.get("GPU", 0))), kind)
    if name == head:
        return NodeType(node, 1 + int(one.get("max_workers", 0)))
    return NodeType(node, min(int(one.get("max_workers", most)), most))


def _parsed(file: Path) -> Any:
    """Raises OSError, InputError."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"it is no YAML: {str(error).splitlines()[0]}") from error
