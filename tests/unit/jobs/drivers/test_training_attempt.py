"""What the driver of a queued training tells the queue by its exit code."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.drivers.training_attempt import exit_code_of
from jobs.run.outcome import Outcome, Status
from jobs.run.summary import utc_now


@pytest.mark.parametrize(
    ("facts", "code"),
    [({}, 1), ({"bad_input": True}, 2), ({"lost": True}, 75), ({"out_of_memory": True}, 76), ({"diverged": True}, 77)],
)
def test_the_exit_code_says_why_the_run_failed(facts: dict[str, Any], code: int) -> None:
    assert exit_code_of(Outcome(status=Status.FAILED, ended_at=utc_now(), **facts)) == code
