"""The jobs that `fleetune queue` shows. The server lists the newest first, but the oldest waiting jobs matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from orchestrator.api import MOST_PAGE, Counts, JobPage, JobView
from orchestrator.client.connection import Connection
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, State

LOOKED_AT: Final = 10_000  # most waiting jobs to read; if there are more, about the oldest thousand are read


class QueueReader:
    """Reads the jobs of one tenant; None: of all tenants that the caller may see."""

    def __init__(self, connection: Connection, tenant: str | None, looked_at: int = LOOKED_AT) -> None:
        self._connection, self._tenant, self._looked_at = connection, tenant, looked_at
        self.set_aside: tuple[str, ...] = ()  # as of the last page

    def counts(self) -> Mapping[State, int]:
        return self._connection.get("/v1/counts", Counts, {"tenant": self._tenant}).states

    def jobs(self, states: Sequence[State], counts: Mapping[State, int], most_ended: int) -> list[JobView]:
        """Return jobs that hold a lease, jobs that wait (see LOOKED_AT), and the newest that have ended."""
        held = [state for state in states if state in HOLDS_A_LEASE]
        ended = [state for state in states if state in ENDED]
        found = self._pages(held, self._looked_at) if held else []
        if State.QUEUED in states:
            many = counts.get(State.QUEUED, 0) > self._looked_at
            found += self._oldest_waiting() if many else self._pages([State.QUEUED], self._looked_at)
        return found + (self._pages(ended, most_ended) if ended else [])

    def _pages(self, states: Sequence[State], most: int, before: int | None = None) -> list[JobView]:
        found: list[JobView] = []
        while len(found) < most:
            page = self._page(states, before, min(most - len(found), MOST_PAGE))
            found += page.jobs
            if page.next is None:
                break
            before = page.next
        return found

    def _oldest_waiting(self) -> list[JobView]:
        """Return about a thousand of the oldest waiting jobs."""
        waits = [State.QUEUED]
        newest = max((job.number for job in self._page(waits, None, 1).jobs), default=0)
        low, high = 0, newest
        while low < high:  # binary search for the number of the oldest
            middle = (low + high) // 2
            low, high = (low, middle) if self._page(waits, middle + 1, 1).jobs else (middle + 1, high)
        span = MOST_PAGE
        while True:  # numbers in between may belong to other jobs
            found = self._pages(waits, 4 * MOST_PAGE, before=low + span)
            if len(found) >= MOST_PAGE or low + span > newest:
                return found
            span *= 2

    def _page(self, states: Sequence[State], before: int | None, limit: int) -> JobPage:
        asked = {"state": [one.value for one in states], "tenant": self._tenant, "before": before, "limit": limit}
        page = self._connection.get("/v1/jobs", JobPage, asked)
        self.set_aside = page.set_aside
        return page
