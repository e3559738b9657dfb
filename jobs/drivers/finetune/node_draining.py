"""Reacts when Ray is about to take nodes away: for a spot notice, for maintenance, or to shrink the cluster."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Collection, Mapping

from cluster.errors import StorageError
from jobs.drivers.stop_request import StopRequest
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

# Seconds to wait for the queue, which will assign other nodes and tell the run when to leave these. If the queue says
# nothing in this time, the run leaves by itself.
_WAITS_S = 15.0


class Draining:
    """Saves a checkpoint, or leaves, before nodes of the run are taken away.

    Args:
        places: ids of the nodes that a queue has assigned; None without a queue, when any node may belong to the run.
    """

    def __init__(self, paths: JobPaths, announce: Announcer, places: Collection[str] | None, stop: StopRequest) -> None:
        self._paths, self._announce, self._stop = paths, announce, stop
        self._places = None if places is None else frozenset(places)
        self._known: set[str] = set()
        self._leaves_at_s = math.inf

    def look(self, leaving: Mapping[str, float]) -> None:
        """Look for nodes that are newly draining. Called every few seconds.

        Args:
            leaving: ids of the nodes, with the latest time of their end in seconds since 1970; inf if it is unknown.
        """
        new = {node for node in leaving if node not in self._known and (self._places is None or node in self._places)}
        if new:
            self._known |= new
            self._tell({node: leaving[node] for node in sorted(new)})
        if time.monotonic() >= self._leaves_at_s:
            self._leaves_at_s = math.inf
            self._stop.ask("node", "nodes of this run are about to be taken away")

    def _tell(self, new: Mapping[str, float]) -> None:
        until_s = min(new.values())
        when = "" if math.isinf(until_s) else f" at {datetime.datetime.fromtimestamp(until_s, datetime.UTC):%H:%M:%SZ}"
        nodes = f"{len(new)} node" + ("s" if len(new) > 1 else "")
        if self._places is None:
            with contextlib.suppress(StorageError):
                storage.write_bytes(self._paths.save_request, b"draining")
            self._announce("draining", f"Ray takes {nodes} away{when}: saving a checkpoint", nodes=list(new))
            return
        self._leaves_at_s = time.monotonic() + _WAITS_S
        self._announce("draining", f"Ray takes {nodes} of this run away{when}: it leaves", nodes=list(new))
