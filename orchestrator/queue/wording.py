"""Wording of a job's states and events, and advice. All interfaces show the same text. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from orchestrator.queue.states import DesiredState, Reason, State

HAS_ENDED: Final[Mapping[State, str]] = {
    State.SUCCEEDED: "has succeeded",
    State.FAILED: "has failed",
    State.CANCELLED: "was cancelled",
}
_DOES: Final[Mapping[State, str]] = {
    State.QUEUED: "waits in the queue",
    State.STARTING: "is starting",
    State.RUNNING: "runs",
    State.STOPPING: "is stopping",
    **HAS_ENDED,
}
_ASKED_OF_IT: Final[Mapping[str, str]] = {
    DesiredState.CANCEL.value: "asked it to end",
    DesiredState.PAUSE.value: "asked it to pause",
    DesiredState.RUN.value: "lets it go on",
}
_STOPS: Final[Mapping[str, str]] = {"cancelled": "is ending, as it was asked to", "paused": "is pausing"}
_SAY_NOTHING: Final = frozenset({Reason.ANSWERED.value, Reason.FINISHED.value, Reason.GRANTED.value})
_USUAL_ADVICE: Final = "see its log (fleetune logs {job}); fleetune retry {job} runs it again"
_ADVICE: Final[Mapping[Reason, str]] = {
    Reason.BAD_INPUT: "correct the spec and submit it again",
    Reason.DIVERGED: "submit it again with a lower train.learning_rate, or check the data; its log "
    "(fleetune logs {job}) has more",
    Reason.OUT_OF_MEMORY: "let it use less memory (smaller micro-batches, more workers), or see what else uses the "
    "memory of its nodes; its log (fleetune logs {job}) has more",
    Reason.SILENT: "see in its log (fleetune logs {job}) whether it reaches the server: fleetune serve --url says how "
    "drivers do; then fleetune retry {job}",
    Reason.TIMED_OUT: "submit it again with a larger max_runtime_s, or go on for as long again: fleetune retry {job}",
    Reason.PARENT_FAILED: "retry that one first, and then this one (fleetune retry {job})",
    Reason.CANCELLED: "fleetune retry {job} puts it back into the queue",
}


def retention_text(retention_days: float | None) -> str:
    """Say what happens to old jobs; '': all are kept."""
    if retention_days is None:
        return ""
    return f"jobs that ended more than {retention_days:g} days ago are removed (fleetune serve --retention-days)"


def does(state: State, wanted: DesiredState = DesiredState.RUN) -> str:
    """Say what a job does, to follow its name: `runs`, `is paused`, `has failed`."""
    if state is State.QUEUED and wanted is DesiredState.PAUSE:
        return "is paused"
    if state is State.QUEUED and wanted is DesiredState.CANCEL:
        return "is about to be cancelled"
    return _DOES[state]


def detail_of(kind: str, message: str) -> str:
    """Return the message of an event; '': it says no more than the event's kind."""
    return "" if message in _SAY_NOTHING or message == kind else message


def happened(kind: str, message: str, data: Mapping[str, Any]) -> str:
    """Describe an event, to follow the name of its job.

    Args:
        kind, message, data: as in `records.QueueEvent`. Events that earlier releases have written or sent may have no
            data; then the message alone is shown.
    """
    if kind == "asked":
        return _asked(data) if "by" in data else message
    if kind not in list(State):
        return message or kind
    state, more = State(kind), detail_of(kind, message)
    if state is State.QUEUED:
        return _put_into_the_queue(more, data.get("reason"))
    if state is State.STARTING:
        return f"starts {more}" if data.get("placement") else "starts" + (f": {more}" if more else "")
    if state is State.STOPPING and more in _STOPS:
        return _STOPS[more]
    return _DOES[state] + (f": {more}" if more else "")


def _put_into_the_queue(message: str, reason: str | None) -> str:
    if not message or reason in (None, Reason.SUBMITTED, Reason.RETRIED):
        return message or _DOES[State.QUEUED]
    return "is paused" if reason == Reason.PAUSED else f"is back in the queue: {message}"


def _asked(data: Mapping[str, Any]) -> str:
    asked = []
    if (wanted := data.get("wanted")) is not None:
        asked.append(_ASKED_OF_IT.get(wanted, f"asked it for {wanted}"))
    if (priority := data.get("priority")) is not None:
        asked.append(f"gave it priority {priority}")
    return f"{data['by']} {' and '.join(asked) or 'asked it for nothing'}"


def advice(reason: Reason, job_id: str) -> str:
    """Say what to do about a job that did not succeed."""
    return _ADVICE.get(reason, _USUAL_ADVICE).format(job=job_id)
