"""The record beside the head of a Ray cluster, by which drivers of `ray job submit` find this server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from cluster.errors import MachinesFailed, StorageError
from cluster.ray.raylets import Raylet, raylet_of_session
from cluster.ray.session_record import SessionRecord, ask_store, read_record, write_record
from orchestrator.client.discovery import answers

_AT_ONCE = "programs of `ray job submit` find no queue, and start at once"
_ANSWERS_S = 2.0


class SessionRecordUpdates:
    """Keeps the record up to date. Called every few seconds: a restarted head has a new session without the record."""

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
        owner = raylet.session.stat().st_uid
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
