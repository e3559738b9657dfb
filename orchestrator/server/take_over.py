"""Events that record when a server becomes the leader of the queue, and when it is stopped."""

from __future__ import annotations

from orchestrator.queue.records import QueueEvent
from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import Filter, Store

LEADS, STOPPED = "server-leads", "server-stopped"
_ACTIVE = tuple(state for state in State if state not in ENDED)


def begins_to_lead(store: Store, now_s: float, url: str) -> None:
    """Add an event with the number of jobs in each state. Raises StoreBroken."""
    counts = store.count(Filter(states=_ACTIVE))
    found = [f"{counts[state]:,} {state}" for state in _ACTIVE if counts.get(state)]
    message = f"the server at {url} leads the queue: {', '.join(found) or 'no'} jobs found"
    store.add_events([QueueEvent(now_s, LEADS, message, data={"url": url})])


def stops(store: Store, now_s: float, url: str) -> None:
    """Add an event about the end of the server. Raises StoreBroken."""
    message = f"the server at {url} was stopped; jobs go on"
    store.add_events([QueueEvent(now_s, STOPPED, message, data={"url": url})])
