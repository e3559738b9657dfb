"""What a server tells its Ray cluster: the demand of the queue, and where `ray job submit` finds the queue."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from cluster.errors import FleetuneError, MachinesFailed, StorageError
from cluster.ray.autoscaler import Autoscaler
from cluster.ray.bundles import format_bundles
from cluster.ray.raylets import Raylet, raylet_of_session
from cluster.ray.session_record import SessionRecord, ask_store, read_record, write_record
from orchestrator.client.discovery import answers
from orchestrator.controller.autoscaler_demand import Demand

_SHOWN = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 60.0  # seconds until the next try after a failure; the wait doubles
_AT_ONCE = "programs of `ray job submit` find no queue, and start at once"
_ANSWERS_S = 2.0


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


class SessionRecordUpdates:
    """Keeps the record beside the head of the cluster up to date.

    Called every few seconds: a restarted head has a new session without the record.
    """

    def __init__(self, session: Callable[[], str], record: SessionRecord, say: Callable[[str], None]) -> None:
        """`session`: returns the name of the current Ray session; raises BackendUnreachable."""
        self._session, self._record, self._say = session, record, say
        self._said = ""
        self._copied = ""  # name of the session whose cluster has the copy
        self._copying: threading.Thread | None = None

    def __call__(self) -> None:
        """Write the record if it is missing. Raises BackendUnreachable."""
        raylet = raylet_of_session(self._session())
        if (hindrance := self._hindrance(raylet)) or raylet is None:
            self._tell(f"{hindrance}: {_AT_ONCE}")
            return
        if read_record(raylet) != self._record:
            try:
                write_record(raylet, self._record)
            except StorageError as error:
                self._tell(f"{error}: {_AT_ONCE}")
                return
        self._tell(f"`ray job submit` queues from now on (Ray's {raylet.session.name})")
        if self._copied != raylet.session.name and (self._copying is None or not self._copying.is_alive()):
            self._copying = threading.Thread(target=self._copy, args=(raylet,), name="record", daemon=True)
            self._copying.start()

    def _hindrance(self, raylet: Raylet | None) -> str:
        """Return why drivers cannot find this server; '': they can."""
        if raylet is None or not raylet.is_head:
            return "the head of the Ray cluster does not run on this machine, or its processes cannot be seen from here"
        try:
            owner = raylet.session.stat().st_uid
        except OSError as error:  # Ray runs in a container, or its directory was removed
            return f"Ray's session directory {raylet.session} cannot be seen from here ({error.strerror})"
        if os.getuid() not in (0, owner):
            return f"Ray runs as user {owner}, whose drivers do not trust this server's user: run it as user {owner}"
        known = read_record(raylet)
        if known is not None and known.queue != self._record.queue and answers(known.url, timeout_s=_ANSWERS_S):
            return f"this cluster has the orchestrator at {known.url}, and `ray job submit` goes there, not here"
        return ""

    def _copy(self, raylet: Raylet) -> None:
        """Copy the record into Ray's key-value store, for drivers on other nodes. This takes seconds."""
        try:
            ask_store(raylet.gcs, self._record)
            self._copied = raylet.session.name
        except MachinesFailed as error:
            self._tell(f"drivers on other nodes than the head will find no queue: {error}")

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)
