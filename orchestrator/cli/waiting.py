"""Messages for a user who waits for a job: why it waits, when the reason changes, and when it starts."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.text import long_duration
from jobs.errors import FleetuneError
from orchestrator.api import JobView, WhyView
from orchestrator.client.connection import Connection
from orchestrator.client.lookup import job_path
from orchestrator.queue.states import HOLDS_A_LEASE, State
from orchestrator.queue.wording import does

FIRST_S, EVERY_S = 1.5, 15.0


class WaitReport:
    """Reports about one waiting job.

    Args:
        say: takes one line for people.
        first_s, every_s: seconds until the first request to the server, and at least between requests.
    """

    def __init__(
        self, connection: Connection, say: Callable[[str], None], first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        self._connection, self._say, self._every_s = connection, say, every_s
        self._ask_at_s = time.monotonic() + first_s
        self._said = ""
        self._waited = False

    def look(self, view: JobView) -> None:
        """Report what is new. Called repeatedly with the job's current state."""
        if view.state in HOLDS_A_LEASE and self._waited:
            self._waited, self._said = False, ""
            on = ", ".join(node for node, _ in view.on or view.placement)
            self._say(f"{view.job_id} starts on {on} after {long_duration(view.waited_s)}")
        if view.state is not State.QUEUED or time.monotonic() < self._ask_at_s:
            return
        self._ask_at_s = time.monotonic() + self._every_s
        try:
            told = self._connection.get(f"{job_path(view.job_id)}/why", WhyView)
        except FleetuneError:  # the user asked for logs, so a missing explanation is not an error
            return
        self._waited = True
        reason = told.reason or f"{view.job_id} {does(view.state)}"  # older servers send no reason
        if reason != self._said:  # the expected start changes all the time
            self._said = reason
            self._say(f"{reason}; expected start: {told.expected}" if told.expected else reason)
