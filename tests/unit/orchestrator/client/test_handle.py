"""What a handle knows without asking."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from orchestrator.client.connection import Connection
from orchestrator.client.handle import JobCancelled, JobHandle
from orchestrator.queue.states import State
from tests.support.jobviews import job


def handle(**changes: object) -> JobHandle:
    return JobHandle(Connection("http://127.0.0.1:1"), job("a-1", **changes))  # type: ignore[arg-type]


def test_a_result_has_the_last_metrics_even_where_the_server_was_not_told(tmp_path: Path) -> None:
    paths = JobPaths(str(tmp_path))
    metrics = {"loss": 0.25, "eval_loss": 0.5}
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, step=20, metrics=metrics, ended_at=datetime.now(UTC)))
    found = handle(state=State.SUCCEEDED, run=str(tmp_path), step=10, metrics={"loss": 0.75, "seen": None}).result()
    assert (found.step, found.paths) == (20, paths)
    assert found.metrics["eval_loss"] == 0.5 and found.metrics["loss"] == 0.25 and math.isnan(found.metrics["seen"])


@pytest.mark.parametrize("run", ["/gone/run", None])
def test_a_run_that_is_not_seen_from_here_leaves_what_the_server_knows(run: str | None) -> None:
    assert handle(state=State.SUCCEEDED, run=run, step=10, metrics={"eval_loss": 0.5}).result().metrics == {
        "eval_loss": 0.5
    }


def test_a_cancelled_job_raises_and_nothing_older_is_learned() -> None:
    found = handle(state=State.CANCELLED, changed=7, message="by anna")
    with pytest.raises(JobCancelled, match="by anna"):
        found.result()
    assert found.learn(job("a-1", State.RUNNING, changed=6)).state is State.CANCELLED
