"""Which runs `fleetune stop` refuses to stop, and the reason that it gives."""

from __future__ import annotations

from orchestrator.cli.run_argument import not_stopped
from orchestrator.queue.states import State
from tests.support.jobviews import NOW_S, job


def test_the_queue_would_start_an_unfinished_job_again() -> None:
    assert "would start it again. fleetune pause job-1" in not_stopped(job("job-1", State.RUNNING))


def test_a_job_that_has_ended_is_not_said_to_start_again() -> None:
    assert not_stopped(job("job-1", State.FAILED, ended_s=NOW_S)) == "job-1 has ended: failed"
