"""What is said while somebody waits for a job: why it waits, whenever that changes, and that it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cluster.text import long_duration
from jobs.errors import FleetuneError
from orchestrator.api import JobView, WhyView
from orchestrator.client.connection import Connection
from orchestrator.client.lookup import job_path
from orchestrator.queue.states import HOLDS_A_LEASE, State

FIRST_S, EVERY_S = 1.5, 15.0
_STARTS: Final = "expected start: "


class WaitingNews:
    """For one job. `say`: for people, one line."""

    def __init__(self, connection: Connection, say: Callable[[str], None]) -> None:
        self._connection, self._say = connection, say
        self._ask_at_s = time.monotonic() + FIRST_S
        self._said = ""
        self._waited = False

    def look(self, view: JobView) -> None:
        """Called with the job as it is now, every so often."""
        if view.state in HOLDS_A_LEASE and self._waited:
            self._waited, self._said = False, ""
            on = ", ".join(node for node, _ in view.on or view.placement)
            self._say(f"{view.job_id} starts on {on} after {long_duration(view.waited_s)}")
        if view.state is not State.QUEUED or time.monotonic() < self._ask_at_s:
            return
        self._ask_at_s = time.monotonic() + EVERY_S
        try:
            told = self._connection.get(f"{job_path(view.job_id)}/why", WhyView)
        except FleetuneError:  # the logs are what was asked for
            return
        self._waited = True
        reason = told.text.splitlines()[0]
        if reason != self._said:  # the expected start changes all the time
            self._said = reason
            starts = [line for line in told.text.splitlines() if line.startswith(_STARTS)]
            self._say("; ".join([reason, *starts]))
