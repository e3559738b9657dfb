"""How long each driver has been silent while a server could hear it.

Time counts only while this server leads, its store answers and its passes go on, so an outage of the server does not
count. Times are of the steady clock. The store tells which drivers were heard, because drivers may report to any server
of the queue.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.queue.store import Store

_READ_EVERY_S: Final = 30.0
_MOST_STEP_S: Final = 60.0  # most to count between two passes: a server that was frozen for longer did not listen


class Hearing:
    """The silence of drivers during one leadership."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._silent_s: dict[str, float] = {}  # by submission
        self._heard: Mapping[str, float | None] = {}
        self._looked_s: float | None = None
        self._read_s = float("-inf")

    def look(self, jobs: Iterable[Job], running: Container[str], steady_s: float) -> Mapping[str, float]:
        """Return seconds of silence of each running driver, by submission.

        Args:
            running: submissions whose program runs, as the machines say.
        """
        passed_s = min(steady_s - self._looked_s, _MOST_STEP_S) if self._looked_s is not None else 0.0
        self._looked_s = steady_s
        current = [
            job.submission for job in jobs if job.state in (State.STARTING, State.RUNNING) and job.submission in running
        ]
        self._silent_s = {name: self._silent_s[name] + passed_s if name in self._silent_s else 0.0 for name in current}
        if steady_s - self._read_s >= _READ_EVERY_S:
            self._read_s, before, self._heard = steady_s, self._heard, self._store.heard()
            for name in current:
                if self._heard.get(name) != before.get(name):
                    self._silent_s[name] = 0.0
        return self._silent_s
