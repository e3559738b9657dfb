"""Events of the queue as people read them, each once. Text only; asks nothing."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.text import at_words
from orchestrator.api import EventView
from orchestrator.pages.tables import plain
from orchestrator.queue.states import State
from orchestrator.queue.wording import happened

Row = tuple[str, str, str]


def event_rows(events: Sequence[EventView]) -> list[Row]:
    """When, of which job (`cluster`: of none), and what.

    A job whose program ends by itself is stopping and has ended at one moment, for one reason: that is said once.
    """
    said = {(one.job_id, one.at_s, one.message) for one in events if one.kind != State.STOPPING}
    shown = [one for one in events if one.kind != State.STOPPING or (one.job_id, one.at_s, one.message) not in said]
    return [(at_words(one.at_s), one.job_id or "cluster", _what(one)) for one in shown]


def _what(event: EventView) -> str:
    if event.job_id is None:
        return plain(event.message or event.kind)
    return plain(happened(event.kind, event.message, event.data))


def event_lines(events: Sequence[EventView]) -> list[str]:
    return ["  ".join(row) for row in event_rows(events)]
