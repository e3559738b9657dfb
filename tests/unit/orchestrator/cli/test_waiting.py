"""What is said while somebody waits for a job."""

from __future__ import annotations

from typing import Any

from orchestrator.api import WhyView
from orchestrator.cli.log_printing import WaitReport
from orchestrator.queue.states import State
from tests.support.jobviews import job

NO_STARTS = {"expected_start_s": None, "earliest_start_s": None, "latest_start_s": None}


class Server:
    """Answers why a job waits, one answer after the other."""

    def __init__(self, *whys: dict[str, Any]) -> None:
        self._whys = [WhyView.model_validate({"text": "line\nline", **NO_STARTS, **one}) for one in whys]

    def get(self, path: str, kind: Any) -> WhyView:
        return self._whys.pop(0)


def said(*whys: dict[str, Any]) -> list[str]:
    told = list[str]()
    report = WaitReport(Server(*whys), told.append, 0.0, 0.0)  # type: ignore[arg-type]
    for _ in whys:
        report.look(job("a-1", State.QUEUED))
    return told


def test_the_reason_is_said_when_it_changes_and_not_when_the_expected_start_does() -> None:
    first, later = {"reason": "too full", "expected": "in 5 min"}, {"reason": "too full", "expected": "in 4 min"}
    assert said(first, later, {"reason": "paused"}) == ["too full; expected start: in 5 min", "paused"]


def test_an_older_server_gives_no_reason() -> None:
    assert said({}, {}) == ["a-1 waits in the queue"]
