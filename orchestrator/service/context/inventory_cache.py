"""A cache of the cluster's inventory: asking the cluster takes a while, and may fail."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

from cluster.backend import Backend
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import BackendUnreachable

_KEPT_S = 3.0
_OTHERS_KEPT_S = 15.0
_LATELY_S = 3600.0
_SILENT_S = 3.0  # seconds after a failure during which the cluster is not asked again


class InventoryCache:
    """The inventory, for many threads: one of them asks the cluster, and the others use its answer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock, self._others_lock = threading.Lock(), threading.Lock()
        self._known: Inventory | None = None
        self._labels: dict[str, str] = {}
        self._seen: dict[str, tuple[Node, float]] = {}  # by name, since a machine that comes back has another id
        self._until_s = 0.0
        self._others: tuple[str, ...] = ()
        self._others_until_s = 0.0
        self._failed: BackendUnreachable | None = None

    def inventory(self) -> Inventory:
        """Return the inventory, a few seconds old at most. Raises BackendUnreachable."""
        with self._lock:
            return self._fresh()

    def lately(self) -> Inventory:
        """Return the inventory with nodes seen within the last hour: most of them come back.

        Raises BackendUnreachable.
        """
        with self._lock:
            known = self._fresh()
            there, names = {node.node_id for node in known.nodes}, {node.name for node in known.nodes if node.name}
            gone = (node for node, _ in self._seen.values() if node.node_id not in there and node.name not in names)
            return replace(known, nodes=(*known.nodes, *gone))

    def last_known(self) -> Inventory | None:
        """Return the newest known inventory, however old; None: the cluster has never answered."""
        try:
            return self.inventory()
        except BackendUnreachable:
            return self._known

    def label(self, node_id: str) -> str:
        """Return the name of a node for people, as far as is known without asking."""
        return self._labels.get(node_id, node_id)

    def others(self) -> tuple[str, ...]:
        """Return the names of other programs on the cluster, as of some seconds ago; empty if it does not tell."""
        with self._others_lock:
            if time.monotonic() >= self._others_until_s:
                with contextlib.suppress(BackendUnreachable):
                    self._others = tuple(self._backend.others())
                self._others_until_s = time.monotonic() + _OTHERS_KEPT_S
            return self._others

    def _fresh(self) -> Inventory:
        if time.monotonic() >= self._until_s:
            self._ask()
        if self._failed is not None:
            raise BackendUnreachable(str(self._failed)) from self._failed
        assert self._known is not None
        return self._known

    def _ask(self) -> None:
        try:
            known = self._backend.inventory()
        except BackendUnreachable as error:
            self._failed, self._until_s = error, time.monotonic() + _SILENT_S
            return
        self._failed, self._until_s = None, time.monotonic() + _KEPT_S
        now_s = time.monotonic()
        self._seen = {name: one for name, one in self._seen.items() if now_s - one[1] < _LATELY_S}
        self._seen |= {node.name or node.node_id: (node, now_s) for node in known.nodes if node.cpus or node.gpus}
        if known != self._known:  # keeps the object, and what was computed from it, if nothing has changed
            self._known, self._labels = known, known.labels
