"""Which runs `fleetune stop` refuses to stop and `fleetune run` to resume, and the reasons that they give."""

from __future__ import annotations

import pytest

from cluster.errors import InputError
from orchestrator.cli import run_argument
from orchestrator.cli.run_argument import check_not_queued, not_stopped
from orchestrator.queue.states import State
from tests.support.jobviews import NOW_S, job


def test_the_queue_would_start_an_unfinished_job_again() -> None:
    assert "would start it again. fleetune pause job-1" in not_stopped(job("job-1", State.RUNNING))


def test_a_job_that_has_ended_is_not_said_to_start_again() -> None:
    assert not_stopped(job("job-1", State.FAILED, ended_s=NOW_S)) == "job-1 has ended: failed"


def test_a_run_that_the_queue_will_resume_is_not_resumed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = job("job-1", State.QUEUED, run="/runs/texts-1")
    monkeypatch.setattr(run_argument, "_job_meant", lambda given: waits)
    with pytest.raises(InputError, match=r"to job job-1 of the queue, which has not ended.*fleetune cancel job-1"):
        check_not_queued("/runs/texts-1")
    with pytest.raises(InputError, match="of a queued comparison belongs to job job-1"):
        check_not_queued("/runs/texts-1/methods/of a queued comparison")
    check_not_queued("/elsewhere/texts-1")
    waits = job("job-1", State.QUEUED, run="/data/methods/texts-1")
    with pytest.raises(InputError, match="/data/methods/texts-1 belongs to job job-1"):
        check_not_queued("/data/methods/texts-1")
    waits = job("job-1", State.FAILED, run="/runs/texts-1", ended_s=NOW_S)
    check_not_queued("/runs/texts-1")
