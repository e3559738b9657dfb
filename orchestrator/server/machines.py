"""From `--address` to the machines that run the jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.backend import Backend
from cluster.errors import BackendUnreachable, InputError
from orchestrator.queue.store import Store
from orchestrator.server.auth import is_loopback
from orchestrator.server.identity import queue_id
from orchestrator.service.surroundings import Engine

_DASHBOARD = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Place:
    """Where jobs run.

    Attributes:
        label: for people.
        same_machine: drivers are started on the server's own machine.
        one_machine: the workers too, all of them; on Ray, as long as it has one node.
        session: the name of the Ray session, now; None: there is no Ray, or its head is elsewhere.
    """

    backend: Backend
    engine: Engine
    label: str
    same_machine: bool
    one_machine: bool
    session: Callable[[], str] | None = None


def machines(address: str | None, store: Store, home: Path) -> Place:
    """
    Raises:
        InputError: it is no address.
        BackendUnreachable: nobody answers there.
    """
    if address is None:
        from cluster.local_backend import LocalBackend

        return Place(LocalBackend(home / "local" / queue_id(store)), "local", "this machine, without Ray", True, True)
    if address.startswith("fake:"):
        from cluster.testing import FakeBackend, ServedCluster

        return Place(FakeBackend(ServedCluster(address.removeprefix("fake:"))), "fake", "a made-up cluster", True, True)
    return _ray(_DASHBOARD if address == "auto" else address, store, found=address == "auto")


def _ray(dashboard: str, store: Store, found: bool) -> Place:
    parts = urlsplit(dashboard)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        host = dashboard.removeprefix("ray://").partition(":")[0] or "HOST"
        raise InputError(
            f"--address {dashboard}: give the address of Ray's dashboard, as http://{host}:8265 (`ray start` prints "
            "it), or auto for the Ray of this machine; nothing: without Ray"
        )
    try:
        from cluster.ray_jobs import RayJobsBackend

        backend = RayJobsBackend(dashboard, queue=queue_id(store), own_use=lambda: held_by_node(store))
        backend.inventory()
    except ModuleNotFoundError as error:
        raise InputError(f"jobs on Ray need {error.name}: pip install 'fleetune[train]'") from error
    except BackendUnreachable as error:
        start = (
            "\nStart one with `ray start --head`, or leave --address out: then jobs run without Ray" if found else ""
        )
        raise BackendUnreachable(f"{error}{start}") from error
    here = is_loopback(parts.hostname)
    return Place(backend, "ray", f"Ray at {dashboard}", here, here, backend.session if here else None)


def held_by_node(store: Store) -> Mapping[str, tuple[float, float]]:
    """CPUs and GPUs that held leases have on each node."""
    held: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for lease in store.leases(held=True):
        for node, workers in lease.placement:
            cpus, gpus = held[node]
            gang = lease.gang
            held[node] = cpus + workers * gang.cpus_per_worker, gpus + workers * gang.gpus_per_worker
    return held
