"""The event log: a line for each new event, counters for metrics, and the events about the server itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from orchestrator.controller.node_health import FAULTY
from orchestrator.http.metrics import Meters
from orchestrator.queue.records import QueueEvent
from orchestrator.queue.states import ENDED, UNFINISHED, State
from orchestrator.queue.store import Filter, Store
from orchestrator.queue.wording import detail_of

_PAGE, _MOST_PAGES = 1000, 20
_MOST_LINES = 10  # most lines of one kind at a time; more are summed up in one line
_TOLD = frozenset({State.RUNNING, *ENDED, FAULTY})


class EventLog:
    """Prints and counts events of a store, from the creation of this object on. Not thread-safe."""

    def __init__(self, store: Store, meters: Meters, say: Callable[[str], None]) -> None:
        self._store, self._meters, self._say = store, meters, say
        self._seen = store.last_event()

    def write_new(self) -> None:
        """Print and count new events. Raises StoreBroken."""
        for _ in range(_MOST_PAGES):
            events = self._store.events(after=self._seen, limit=_PAGE)
            if events:
                self._seen = events[-1].number
                self._count(events)
                for line in lines_of(events):
                    self._say(line)
            if len(events) < _PAGE:
                return

    def _count(self, events: Sequence[QueueEvent]) -> None:
        kinds = Counter(event.kind for event in events)
        self._meters.admissions.inc(kinds[State.STARTING])
        for state in ENDED:
            if kinds[state]:
                self._meters.ended.labels(state.value).inc(kinds[state])


def lines_of(events: Sequence[QueueEvent]) -> list[str]:
    """Format starts and ends of jobs, and all events of the cluster."""
    told = [event for event in events if event.job_id is None or event.kind in _TOLD]
    many = {kind for kind, number in Counter(event.kind for event in told).items() if number > _MOST_LINES}
    lines = [_line(event) for event in told if event.kind not in many]
    return [*lines, *(f"{sum(event.kind == kind for event in told)} jobs: {kind}" for kind in sorted(many))]


def _line(event: QueueEvent) -> str:
    if event.job_id is None:
        return event.message
    message = detail_of(event.kind, event.message)
    return f"{event.job_id}: {event.kind}{f' ({message})' if message else ''}"


def begins_to_lead(store: Store, now_s: float, url: str) -> None:
    """Add an event with the number of jobs in each state. Raises StoreBroken."""
    counts = store.count(Filter(states=UNFINISHED))
    found = [f"{counts[state]:,} {state}" for state in UNFINISHED if counts.get(state)]
    message = f"the server at {url} leads the queue: {', '.join(found) or 'no unfinished'} jobs found"
    store.add_events([QueueEvent(now_s, "server-leads", message, data={"url": url})])


def stops(store: Store, now_s: float, url: str) -> None:
    """Add an event about the end of the server. Raises StoreBroken."""
    message = f"the server at {url} was stopped; jobs go on"
    store.add_events([QueueEvent(now_s, "server-stopped", message, data={"url": url})])
