"""Updates for Ray's autoscaler: tells it the demand of the queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cluster.errors import FleetuneError
from cluster.ray.autoscaler import Autoscaler
from cluster.ray.bundles import format_bundles
from orchestrator.controller.autoscaler_demand import Demand

_SHOWN = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 60.0  # seconds until the next try after a failure; the wait doubles


class DemandUpdates:
    """Called by the leader every few seconds. It tells Ray in a separate thread, since that takes a while."""

    def __init__(self, autoscaler: Autoscaler, demand: Callable[[], Demand], say: Callable[[str], None]) -> None:
        self._autoscaler, self._demand, self._say = autoscaler, demand, say
        # None: unknown, because an earlier server, or a call without an answer, may have set a demand.
        self._told: Demand | None = None
        self._announced: tuple[tuple[str, ...], bool] = ((), False)
        self._session = self._trouble = self._failure = ""  # the last two: as last reported
        self._wait_s, self._not_before_s = _FIRST_WAIT_S, 0.0
        self._thread: threading.Thread | None = None

    def __call__(self) -> None:
        """Tell Ray if the demand has changed. Raises BackendUnreachable."""
        grows = bool(self._autoscaler.growth().types)
        if (trouble := self._autoscaler.trouble) != self._trouble:
            self._trouble = trouble
            if trouble:
                self._say(f"the nodes that Ray's autoscaler may add cannot be read now; the last ones count: {trouble}")
        if self._thread is not None and self._thread.is_alive():
            return
        if time.monotonic() < self._not_before_s or not (grows or self._session):
            return
        demand = self._demand()  # empty if the cluster does not grow any more
        if self._told is None or demand.bundles != self._told.bundles or self._autoscaler.session() != self._session:
            self._thread = threading.Thread(target=self._tell, args=(demand,), name="autoscaler", daemon=True)
            self._thread.start()
        else:
            self._announce(demand)

    def _tell(self, demand: Demand) -> None:
        self._told = None
        try:
            self._session = self._autoscaler.ask(demand.bundles)
        except (FleetuneError, OSError) as error:
            self._not_before_s = time.monotonic() + self._wait_s
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
            if str(error) != self._failure:
                self._failure = str(error)
                self._say(f"Ray's autoscaler could not be told the demand: {error}")
            return
        self._told, self._failure, self._wait_s = demand, "", _FIRST_WAIT_S
        self._announce(demand)

    def _announce(self, demand: Demand) -> None:
        announced = (demand.waiting, bool(demand.bundles))
        if announced == self._announced:
            return
        self._announced = announced
        if demand.waiting:
            more = len(demand.waiting) - _SHOWN
            names = ", ".join(demand.waiting[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
            self._say(f"{names}: Ray's autoscaler is asked for room, {format_bundles(demand.bundles)} in all")
        else:
            self._say(
                f"nobody waits for room: Ray's autoscaler is asked for {format_bundles(demand.bundles)} from now on"
            )
