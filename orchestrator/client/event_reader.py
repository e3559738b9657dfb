"""Reads the newest events, and then events as they occur."""

from __future__ import annotations

from typing import Final

from orchestrator.api import MOST_PAGE, Events, EventView
from orchestrator.client.connection import Connection

_NEWEST: Final = 2**63 - 1


class EventReader:
    """Reads the events of one path, each once."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection, self._path, self._after = connection, path, 0

    def newest(self, count: int) -> list[EventView]:
        """Return the last `count` events, oldest first. `new` returns all later ones."""
        found: list[EventView] = []
        before = _NEWEST
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
