"""Events as they occur. The server lists them oldest first, so the newest are found by a binary search."""

from __future__ import annotations

from typing import Final

from orchestrator.api import MOST_PAGE, Events, EventView
from orchestrator.client.connection import Connection

FAR: Final = 1 << 40


class EventReader:
    """Reads the events of one path, each once."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection, self._path, self._after = connection, path, 0

    def newest(self, count: int) -> list[EventView]:
        """Return the last `count` events, oldest first. `new` returns all later ones."""
        last = self._last()
        begin, span = last, max(count, 1)
        found: list[EventView] = []
        while count and len(found) < count and begin > 0:  # events that the caller may not see may lie in between
            begin = max(last - span, 0)
            found, span = self._from(begin), span * 4
        self._after = last
        return found[-count:] if count else []

    def new(self) -> list[EventView]:
        return self._from(self._after)

    def _from(self, after: int) -> list[EventView]:
        found: list[EventView] = []
        while True:
            page = self._page(after, MOST_PAGE)
            found += page.events
            after = max(page.last, after, *(one.number for one in page.events), 0)
            if len(page.events) < MOST_PAGE:
                self._after = max(self._after, after)
                return found

    def _last(self) -> int:
        """Return the number of the newest event by a binary search; 0: there is none."""
        low, step = 0, 1
        while self._page(low + step, 1).events and step < FAR:
            low, step = low + step, step * 2
        high = low + step
        while low < high:  # there are events after every number below `low`, and none after `high`
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._page(middle, 1).events else (low, middle)
        return low

    def _page(self, after: int, limit: int) -> Events:
        return self._connection.get(self._path, Events, {"after": after, "limit": limit})
