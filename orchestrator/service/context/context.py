"""What the service works with. The server creates it once, at its start."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from cluster.backend import Backend
from orchestrator.queue.clock import Clock
from orchestrator.queue.store import Store
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.service.context.heartbeats import Beats
from orchestrator.service.context.identity import DriverKey
from orchestrator.service.context.inventory_cache import Machines
from orchestrator.service.usage import UsageMonths

MOST_GUESTS: Final = 250  # each, with what Ray keeps for it, holds some 130 MB of the head's memory
Engine = Literal["ray", "local", "fake"]


@dataclass(frozen=True)
class Surroundings:
    """Used by many threads at once. `close` when the server ends.

    Attributes:
        engine: what runs the workers of jobs.
        url: under which drivers reach the server.
        other_urls: under which drivers reach further servers of the same queue.
        queue: id of the queue.
        shared: folders that the server's machine and all workers see under the same path.
        one_machine: the server and all workers see the same files; on Ray, as long as it has one node.
        secrets: what jobs may be given, by name.
        python: how Python is started where drivers run.
        protocols: of URLs in specs, beside `jobs.storage.locations.PROTOCOLS`.
        retention_days: for how long jobs are kept after their end; 0: for ever.
        most_guests: how many programs of `ray job submit` may be queued at once.
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
    most_guests: int = MOST_GUESTS
    protocols: frozenset[str] = frozenset()
    retention_days: float = 0.0

    def __post_init__(self) -> None:
        _ = (
            self.machines,
            self.beats,
            self.driver_key,
            self.usage_months,
        )  # made now: later, two threads may both make one

    @cached_property
    def machines(self) -> Machines:
        """The inventory as it was a moment ago."""
        return Machines(self.backend)

    @property
    def shares_files(self) -> bool:
        """Whether the workers see all files that the server sees, as far as is known now."""
        known = self.machines.last_known() if self.one_machine and self.engine == "ray" else None
        return self.one_machine and (known is None or len(known.nodes) <= 1)

    @cached_property
    def beats(self) -> Beats:
        """What drivers have said, and is not written yet."""
        return Beats(self.store, self.clock)

    @cached_property
    def driver_key(self) -> DriverKey:
        """By which the tokens of attempts are made."""
        return DriverKey(self.store)

    @cached_property
    def usage_months(self) -> UsageMonths:
        """What tenants have used, by month."""
        return UsageMonths(self.store, self.clock)

    def close(self) -> None:
        """Write what is not written yet. The store and the backend stay open."""
        self.beats.close()
