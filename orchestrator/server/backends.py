"""Backends: from `--address` to the machines that run the jobs."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.addresses import is_loopback
from cluster.backend import Backend
from cluster.capacity.inventory import Growth
from cluster.errors import BackendUnreachable, InputError
from cluster.ray.autoscaler import Autoscaler
from cluster.ray.nodes import Use
from orchestrator.controller.machines import Machines
from orchestrator.queue.records import Lease
from orchestrator.queue.store import Store
from orchestrator.service.context.context import Engine
from orchestrator.service.context.identity import queue_id

_DASHBOARD = "http://127.0.0.1:8265"
_GCS_PORT = 6379  # Ray's default port
_REPORTED_AFTER_S = 8.0  # `/api/cluster_status` is up to 5 s old, and workers end a moment after their driver
_TAKEN_AFTER_S = 60.0  # a gang has taken its places by then: its driver has started, and asked Ray for them
_NO_USE = (0.0, 0.0)
_FOLDER_ID = "id"  # file in the folder of a local backend


@dataclass(frozen=True)
class Place:
    """The place where jobs run.

    Attributes:
        label: name for people.
        machines: marks by which a store knows the machines again.
        session_mark: returns one more mark, of the current Ray session; '': none.
        one_machine: drivers and workers run on the server's machine; workers on Ray as long as it has one node.
        session: returns the name of the current Ray session; None: there is no Ray, or its head is on another machine.
        autoscaler: Ray's autoscaler; None: there is no Ray, or nothing is known about what the autoscaler may add.
    """

    backend: Backend
    engine: Engine
    label: str
    machines: Machines
    one_machine: bool
    session_mark: Callable[[], str] = lambda: ""
    session: Callable[[], str] | None = None
    autoscaler: Autoscaler | None = None


def machines(address: str | None, store: Store, home: Path, autoscaler: Path | None = None) -> Place:
    """Connect to the machines of an address.

    Args:
        autoscaler: the configuration file of Ray's autoscaler, if it is not found automatically.

    Raises:
        InputError: the address is not valid, or the file does not exist.
        BackendUnreachable: nothing answers at the address.
    """
    if autoscaler is not None and (address is None or address.startswith("fake:")):
        raise InputError("--autoscaler goes with --address: without Ray nobody adds machines")
    if address is None:
        from cluster.local.backend import LocalBackend

        folder = home / "local" / queue_id(store)
        backend = LocalBackend(folder)
        known_as = local_machines(home, _folder_id(folder))
        return Place(backend, "local", "this machine, without Ray", known_as, True)
    if address.startswith("fake:"):
        from cluster.testing import FakeBackend, ServedCluster

        made_up = Machines("a made-up cluster", f"with --address {address}", frozenset({address}))
        return Place(FakeBackend(ServedCluster(address.removeprefix("fake:"))), "fake", made_up.label, made_up, True)
    return _ray(_DASHBOARD if address == "auto" else address, store, address == "auto", autoscaler)


def _ray(dashboard: str, store: Store, found: bool, autoscaler: Path | None) -> Place:
    try:
        parts = urlsplit(dashboard)
    except ValueError:  # a bracket of an IPv6 address is missing
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        host = dashboard.removeprefix("ray://").partition(":")[0] or "HOST"
        raise InputError(
            f"--address {dashboard}: give the address of Ray's dashboard, as http://{host}:8265 (`ray start` prints "
            "it), or auto for the Ray of this machine; nothing: without Ray"
        )
    try:
        from cluster.ray.backend import RayJobsBackend

        here = is_loopback(parts.hostname)
        session = RayJobsBackend(dashboard).session
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        grows = Autoscaler(session, f"{host}:{_GCS_PORT}", autoscaler) if here or autoscaler else None
        if grows is not None:
            grows.check()
        backend = RayJobsBackend(
            dashboard,
            queue=queue_id(store),
            foreign=ForeignUse(store),
            growth=grows.growth if grows is not None else Growth,
        )
        backend.inventory()
    except ModuleNotFoundError as error:
        raise InputError(f"jobs on Ray need {error.name}: pip install 'fleetune[train]'") from error
    except BackendUnreachable as error:
        start = (
            "\nStart one with `ray start --head`, or leave --address out: then jobs run without Ray" if found else ""
        )
        raise BackendUnreachable(f"{error}{start}") from error
    return Place(
        backend,
        "ray",
        f"Ray at {dashboard}",
        ray_machines(dashboard),
        here,
        session_mark=lambda: f"session {name}" if (name := session()) else "",
        session=session if here else None,
        autoscaler=grows,
    )


def local_machines(home: Path, folder_id: str) -> Machines:
    """Return this machine without Ray. Pure but for the machine's name.

    Its name may change, as that of a container does, so the folder of its programs decides.
    """
    name = os.uname().nodename
    return Machines(
        f"{name} without Ray, in {home}",
        f"without --address on {name}, with FLEETUNE_HOME={home}",
        frozenset({f"local {folder_id}"}),
    )


def ray_machines(dashboard: str) -> Machines:
    """Return the cluster of a dashboard's URL. It stays the same one when its head is started anew.

    A loopback address means another cluster on each machine, so it gets the machine's name.
    """
    parts = urlsplit(dashboard)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    here = is_loopback(host)
    name = os.uname().nodename if here else host
    where = f" on {name}" if here else ""
    return Machines(
        f"Ray at {dashboard}{where}", f"with --address {dashboard}{where}", frozenset({f"ray {name.lower()}:{port}"})
    )


def _folder_id(folder: Path) -> str:
    """Return the id of a local backend's folder, which the first server creates. Raises BackendUnreachable."""
    path, beside = folder / _FOLDER_ID, folder / f".{_FOLDER_ID}.{secrets.token_hex(4)}"
    try:
        if not path.exists():
            beside.write_text(secrets.token_hex(8))
            with contextlib.suppress(FileExistsError):  # another server was faster
                os.link(beside, path)
            beside.unlink()
        return path.read_text()
    except OSError as error:
        raise BackendUnreachable(f"{folder} cannot be used: {error.strerror}") from error


class ForeignUse:
    """What others use on each node: the use that Ray reports without that of leases.

    Ray's report is some seconds old, and a gang takes its places a while after it has got its lease. So the report may
    or may not contain a lease that is new or has just ended. As far as that leaves a choice, others still use what they
    used before.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._held_at: dict[Lease, float] = {}  # leases that are held or were a moment ago, and when they last were
        self._before: dict[str, tuple[float, float]] = {}  # the last answer

    def __call__(self, use: Use) -> Use:
        """Return (CPUs, GPUs) by node, from those that Ray reports."""
        with self._lock:
            now_s, held = self._clock(), self._store.leases(held=True)
            self._held_at |= dict.fromkeys(held, now_s)
            self._held_at = {lease: at_s for lease, at_s in self._held_at.items() if now_s - at_s <= _REPORTED_AFTER_S}
            surely = _use_of(lease for lease in held if now_s - lease.granted_s > _TAKEN_AFTER_S)
            perhaps = _use_of(self._held_at)
            self._before = {
                node: (
                    _foreign(used[0], surely[node][0], perhaps[node][0], self._before.get(node, _NO_USE)[0]),
                    _foreign(used[1], surely[node][1], perhaps[node][1], self._before.get(node, _NO_USE)[1]),
                )
                for node, used in use.items()
            }
            return self._before


def _foreign(used: float, surely: float, perhaps: float, before: float) -> float:
    """Return what others use of `used`, of which between `surely` and `perhaps` is ours; never negative. Pure."""
    return max(0.0, used - perhaps, min(used - surely, before))


def _use_of(leases: Iterable[Lease]) -> Mapping[str, tuple[float, float]]:
    """Return (CPUs, GPUs) by node, zero for others."""
    held: dict[str, tuple[float, float]] = defaultdict(lambda: _NO_USE)
    for lease in leases:
        for node, workers in lease.placement:
            cpus, gpus = held[node]
            held[node] = cpus + workers * lease.gang.cpus_per_worker, gpus + workers * lease.gang.gpus_per_worker
    return held
