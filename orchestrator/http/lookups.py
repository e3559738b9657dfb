"""Queries that the contract of a store does not offer, answered by a binary search of a few dozen calls."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.queue.store import Filter, Store

_QUEUED = Filter(states=(State.QUEUED,))


def last_change(store: Store, known: int = 0) -> int:
    """Return the number of the newest change. `known`: a lower bound."""

    return _last(lambda number: not store.changes(max(number, 1), limit=1), known)


def last_event(store: Store) -> int:
    """Return the number of the newest event."""
    return _last(lambda number: not store.events(after=number, limit=1), 0)


def oldest_waiting(store: Store) -> Job | None:
    """Return the QUEUED job that was submitted first; None: none is queued."""
    newest = store.jobs(_QUEUED, limit=1)
    if not newest:
        return None

    def is_above(number: int) -> bool:
        return bool(store.jobs(_QUEUED, before=number, limit=1))

    found = store.jobs(_QUEUED, before=_first(is_above, 0, newest[0].number + 1), limit=1)
    return found[0] if found else newest[0]


def _last(is_last: Callable[[int], bool], known: int) -> int:
    step = 1
    while not is_last(known + step):
        step *= 2
    return _first(is_last, known, known + step)


def _first(true: Callable[[int], bool], low: int, high: int) -> int:
    """Return the lowest number in [low, high] for which a monotonic condition is true. It must be true for `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if true(middle) else (middle + 1, high)
    return low
