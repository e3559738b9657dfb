"""The jobs that `fleetune queue` shows, and events: the newest, and then all that occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from orchestrator.api import MOST_PAGE, NEWEST, Counts, Events, EventView, JobPage, JobView
from orchestrator.client.connection import Connection
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, State

LOOKED_AT: Final = 10_000  # most waiting jobs that are read, the oldest first; also most jobs with a lease


class QueueReader:
    """Reads the jobs of one tenant; None: of all tenants that the caller may see."""

    def __init__(self, connection: Connection, tenant: str | None, looked_at: int = LOOKED_AT) -> None:
        self._connection, self._tenant, self._looked_at = connection, tenant, looked_at
        # Of the page that was read last, see `JobPage`.
        self.set_aside: tuple[str, ...] = ()
        self.unanswered = ""

    def counts(self) -> Mapping[State, int]:
        return self._connection.get("/v1/counts", Counts, {"tenant": self._tenant}).states

    def jobs(self, states: Sequence[State], most_ended: int) -> list[JobView]:
        """Return jobs that wait (see LOOKED_AT), jobs that hold a lease, and the newest that have ended.

        They are read in the order in which a job takes these states, so that one that starts or ends meanwhile is not
        missed. If it was read twice, the newer view counts.
        """
        held = [state for state in states if state in HOLDS_A_LEASE]
        ended = [state for state in states if state in ENDED]
        found = self._pages([State.QUEUED], self._looked_at, after=0) if State.QUEUED in states else []
        found += self._pages(held, self._looked_at) if held else []
        found += self._pages(ended, most_ended) if ended else []
        return list({job.job_id: job for job in found}.values())

    def _pages(self, states: Sequence[State], most: int, after: int | None = None) -> list[JobView]:
        """Return up to `most` jobs, the newest first; with `after`, the oldest first."""
        found: list[JobView] = []
        asked = {"state": [one.value for one in states], "tenant": self._tenant, "after": after}
        while len(found) < most:
            page = self._connection.get("/v1/jobs", JobPage, {**asked, "limit": min(most - len(found), MOST_PAGE)})
            self.set_aside, self.unanswered = page.set_aside, page.unanswered
            found += page.jobs
            if page.next is None:
                break
            asked["before" if after is None else "after"] = page.next
        return found


class EventReader:
    """Reads the events of one path, each once."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection, self._path, self._after = connection, path, 0

    def newest(self, count: int) -> list[EventView]:
        """Return the last `count` events, oldest first. `new` returns all later ones."""
        found: list[EventView] = []
        before = NEWEST
        while before and len(found) < max(count, 1):  # a page may be short: the caller may not see all events
            limit = min(max(count - len(found), 1), MOST_PAGE)
            page = self._connection.get(self._path, Events, {"before": before, "limit": limit})
            found, before = [*found, *page.events], page.last
        self._after = found[0].number if found else 0
        return found[:count][::-1]

    def new(self) -> list[EventView]:
        found: list[EventView] = []
        while True:
            page = self._connection.get(self._path, Events, {"after": self._after, "limit": MOST_PAGE})
            found += page.events
            self._after = max(page.last, self._after)
            if len(page.events) < MOST_PAGE:
                return found
