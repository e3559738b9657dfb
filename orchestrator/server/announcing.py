"""Has drivers that `ray job submit` starts find this server, by a record beside the head of their cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cluster.errors import MachinesFailed, StorageError
from cluster.raylets import Raylet, raylet_of_session
from cluster.sessionrecord import SessionRecord, ask_store, read_record, write_record


class Announcing:
    """Called by the leader every few seconds: a head that was started anew has a new session, without the record."""

    def __init__(self, session: Callable[[], str], record: SessionRecord, say: Callable[[str], None]) -> None:
        """`session`: the name of the cluster's, now. Raises BackendUnreachable."""
        self._session, self._record, self._say = session, record, say
        self._said = ""

    def __call__(self) -> None:
        """Raises BackendUnreachable."""
        raylet = raylet_of_session(self._session())
        if raylet is None or not raylet.is_head:
            self._tell(
                "the head of the Ray cluster does not run on this machine, or its processes cannot be seen from here: "
                "what is submitted with `ray job submit` finds no queue, and starts at once"
            )
        elif read_record(raylet) != self._record:
            try:
                write_record(raylet, self._record)
            except StorageError as error:
                self._tell(f"what is submitted with `ray job submit` finds no queue, and starts at once: {error}")
                return
            self._tell(f"`ray job submit` queues from now on (Ray's {raylet.session.name})")
            threading.Thread(target=self._copy, args=(raylet,), name="record", daemon=True).start()

    def _copy(self, raylet: Raylet) -> None:
        """For drivers on other nodes; it takes seconds."""
        try:
            ask_store(raylet.gcs, self._record)
        except MachinesFailed as error:
            self._say(f"drivers on other nodes than the head will find no queue: {error}")

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)
