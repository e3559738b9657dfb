"""Formats events of the queue as lines. Duplicates are left out."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.text import format_time
from orchestrator.api import EventView
from orchestrator.pages.tables import plain
from orchestrator.queue.states import State
from orchestrator.queue.wording import happened

Row = tuple[str, str, str]


def event_rows(events: Sequence[EventView]) -> list[Row]:
    """Return (time, job or `cluster`, text) for each event.

    If a job's program ends by itself, the events `stopping` and `ended` have the same time and text; only the second is
    returned.
    """
    said = {(one.job_id, one.at_s, one.message) for one in events if one.kind != State.STOPPING}
    shown = [one for one in events if one.kind != State.STOPPING or (one.job_id, one.at_s, one.message) not in said]
    return [(format_time(one.at_s), one.job_id or "cluster", _what(one)) for one in shown]


def _what(event: EventView) -> str:
    if event.job_id is None:
        return plain(event.message or event.kind)
    return plain(happened(event.kind, event.message, event.data))


def event_lines(events: Sequence[EventView]) -> list[str]:
    return ["  ".join(row) for row in event_rows(events)]
