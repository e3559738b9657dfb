"""Advice on what to do about a job that did not succeed. All interfaces show the same text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orchestrator.queue.states import Reason

_USUAL: Final = "see its log (fleetune logs {job}); fleetune retry {job} runs it again"
_BY_REASON: Final[Mapping[Reason, str]] = {
    Reason.BAD_INPUT: "correct the spec and submit it again",
    Reason.OUT_OF_MEMORY: "let it use less memory (smaller micro-batches, more workers), or see what else uses the "
    "memory of its nodes; its log (fleetune logs {job}) has more",
    Reason.SILENT: "see in its log (fleetune logs {job}) whether it reaches the server: fleetune serve --url says how "
    "drivers do; then fleetune retry {job}",
    Reason.TIMED_OUT: "submit it again with a larger max_runtime_s, or go on for as long again: fleetune retry {job}",
    Reason.PARENT_FAILED: "retry that one first, and then this one (fleetune retry {job})",
    Reason.CANCELLED: "fleetune retry {job} puts it back into the queue",
}


def advice(reason: Reason, job_id: str) -> str:
    return _BY_REASON.get(reason, _USUAL).format(job=job_id)
