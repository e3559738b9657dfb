"""Metrics for Prometheus. Metrics of the store and the machines are read when they are scraped."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from cluster.capacity.inventory import Inventory
from cluster.capacity.occupancy import workers_in
from cluster.errors import FleetuneError
from orchestrator.queue.states import State
from orchestrator.queue.store import Filter, Store

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_OF_ALL = re.compile(rb"(# (HELP|TYPE) )?fleetune_(oldest_waiting|admissions|jobs_ended|jobs_submitted)")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """The metrics of a server, in a separate registry. Thread-safe."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry(auto_describe=True)
        labels = ("method", "route", "status")
        self._requests = Histogram(
            "fleetune_http_request_seconds", "Requests, by route and status.", labels, registry=own, buckets=_SECONDS
        )
        self.passes = Histogram("fleetune_pass_seconds", "Passes of the controller.", registry=own, buckets=_SECONDS)
        self.admissions = Counter("fleetune_admissions", "Leases that were granted.", registry=own)
        self.ended = Counter("fleetune_jobs_ended", "Jobs that have ended, by state.", ("state",), registry=own)
        self.submitted = Counter("fleetune_jobs_submitted", "Jobs that were submitted here.", registry=own)
        self.heartbeats = Counter("fleetune_heartbeats", "Messages of drivers.", registry=own)
        self.heartbeat_faults = Gauge(
            "fleetune_heartbeat_faults", "Writes of heartbeats that failed unexpectedly.", registry=own
        )
        self.leads = Gauge("fleetune_leader", "1: this server leads, and its passes succeed.", registry=own)
        self.failing = Gauge("fleetune_passes_failing", "Consecutive passes that have failed.", registry=own)
        self.set_aside = Gauge(
            "fleetune_set_aside", "Rows that cannot be read, and jobs that cannot be planned.", registry=own
        )
        self.store_errors = Counter("fleetune_store_errors", "Times that the store gave no answer.", registry=own)
        self.backend_errors = Counter("fleetune_backend_errors", "Times that the machines gave none.", registry=own)
        self._children: dict[tuple[str, str, int], Any] = {}

    def asked(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method if method in _METHODS else "other", route, status)  # few different labels, whatever clients send
        child = self._children.get(key)
        if child is None:  # a lookup by labels takes longer than the count
            child = self._children[key] = self._requests.labels(*key)
        child.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def of_tenant(text: bytes, tenant: str) -> bytes:
    """Return the text without lines of other tenants, and without sums over the jobs of all tenants."""
    own = f'tenant="{tenant}"'.encode()
    lines = (line for line in text.splitlines(keepends=True) if b'tenant="' not in line or own in line)
    return b"".join(line for line in lines if not _OF_ALL.match(line))


class ClusterCollector:
    """A collector for metrics of the store and the machines. It reads them at most once in a few seconds."""

    FRESH_S = 5.0

    def __init__(self, store: Store, inventory: Callable[[], Inventory], now_s: Callable[[], float]) -> None:
        self._store, self._inventory, self._now_s = store, inventory, now_s
        self._lock = threading.Lock()
        self._known: list[GaugeMetricFamily] = []
        self._until_s = -1.0

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # so that registering it reads nothing

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            if time.monotonic() >= self._until_s:
                self._known = self._collected()
                self._until_s = time.monotonic() + self.FRESH_S
            known = self._known
        yield from known

    def _collected(self) -> list[GaugeMetricFamily]:
        found: list[GaugeMetricFamily] = []
        for part in (self._jobs, self._oldest, self._gpus):
            with contextlib.suppress(FleetuneError):  # metrics that cannot be read are left out
                found += part()
        return found

    def _jobs(self) -> list[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("fleetune_jobs", "Jobs, by tenant and state.", labels=("tenant", "state"))
        for tenant in self._store.tenants():
            counts = self._store.count(Filter(tenant=tenant.name))
            for state in State:
                jobs.add_metric((tenant.name, state.value), counts.get(state, 0))
        return [jobs]

    def _oldest(self) -> list[GaugeMetricFamily]:
        oldest = GaugeMetricFamily(
            "fleetune_oldest_waiting_seconds", "Seconds since the submission of the oldest waiting job."
        )
        waits = self._store.jobs(Filter(states=(State.QUEUED,)), after=0, limit=1)
        oldest.add_metric((), max(self._now_s() - waits[0].submitted_s, 0.0) if waits else 0.0)
        return [oldest]

    def _gpus(self) -> list[GaugeMetricFamily]:
        inventory = self._inventory()
        leases = self._store.leases(held=True)
        held = sum(lease.gang.gpus_per_worker * workers_in(lease.placement) for lease in leases)
        foreign = sum(node.foreign_gpus for node in inventory.nodes)
        gpus = GaugeMetricFamily("fleetune_gpus", "GPUs of the machines, by holder.", labels=("of",))
        gpus.add_metric(("all",), inventory.gpus)
        gpus.add_metric(("held",), held)
        gpus.add_metric(("foreign",), foreign)
        gpus.add_metric(("free",), max(inventory.gpus - foreign - held, 0))
        nodes = GaugeMetricFamily("fleetune_nodes", "Machines, by whether they can be used.", labels=("usable",))
        usable = sum(node.usable for node in inventory.nodes)
        nodes.add_metric(("yes",), usable)
        nodes.add_metric(("no",), len(inventory.nodes) - usable)
        return [gpus, nodes]
