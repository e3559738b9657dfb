"""The context of the service. The server creates it once, at its start."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cluster.backend import Backend
from orchestrator.api import Engine as Engine
from orchestrator.queue.clock import Clock
from orchestrator.queue.errors import OtherQueue
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.service.context.heartbeats import Heartbeats
from orchestrator.service.context.identity import DriverKey
from orchestrator.service.context.inventory_cache import InventoryCache
from orchestrator.service.usage import UsageMonths

MOST_RAY_SUBMITTED: Final = 250  # each program and Ray's supervisor of it hold about 130 MB of memory on the head


@dataclass
class ServiceContext:
    """The objects and settings that the service works with. Thread-safe. Call `close` when the server ends.

    Attributes:
        engine: the backend that runs the workers of jobs.
        url: the URL at which drivers reach this server.
        other_urls: URLs of further servers of the same queue.
        queue: id of the queue.
        shared: folders that the server's machine and all workers see at the same path.
        one_machine: the server and all workers see the same files; on Ray, as long as the cluster has one node.
        secrets: values that jobs may be given, by name.
        python: command that starts Python where drivers run.
        protocols: protocols of URLs that specs may use in addition to `jobs.storage.locations.PROTOCOLS`.
        retention_days: how long jobs are kept after their end; 0: forever.
        most_ray_submitted: most programs of `ray job submit` that may be queued at once.
        machines: a cache of the inventory, a few seconds old at most.
        heartbeats: reports of drivers that are not written yet.
        driver_key: signs the tokens of attempts.
    """

    store: Store
    backend: Backend
    clock: Clock
    policy: Policy = DEFAULT
    engine: Engine = "local"
    url: str = ""
    other_urls: tuple[str, ...] = ()
    queue: str = ""
    shared: tuple[str, ...] = ()
    one_machine: bool = False
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    python: tuple[str, ...] = (sys.executable,)
    most_ray_submitted: int = MOST_RAY_SUBMITTED
    protocols: frozenset[str] = frozenset()
    retention_days: float = 0.0

    def __post_init__(self) -> None:
        self.machines = InventoryCache(self.backend)
        self.heartbeats = Heartbeats(self.store, self.clock)
        self.driver_key = DriverKey(self.store)
        self.usage_months = UsageMonths(self.store, self.clock)

    @property
    def shares_files(self) -> bool:
        """Whether the workers see all files of the server, as far as is known now."""
        known = self.machines.last_known() if self.one_machine and self.engine == "ray" else None
        return self.one_machine and (known is None or len(known.nodes) <= 1)

    def tenant(self, name: str) -> Tenant | None:
        """Return the tenant of this name, if there is one. Raises StoreBroken."""
        return next((one for one in self.store.tenants() if one.name == name), None)

    def check_queue(self, queue: str, who: str) -> None:
        """Check that a message is for this queue; '': its sender names none.

        Args:
            who: the sender, for the message of the error.

        Raises:
            OtherQueue: the sender belongs to another queue (409).
        """
        if queue and queue != self.queue:
            raise OtherQueue(
                f"{who} belongs to queue {queue}, and this server keeps another one. Start the server with the store "
                "of that queue, or give drivers the right --url"
            )

    def close(self) -> None:
        """Write pending reports. The store and the backend stay open."""
        self.heartbeats.close()
