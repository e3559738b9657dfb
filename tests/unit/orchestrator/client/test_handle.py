"""What a handle knows without asking."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from orchestrator.api import Changes, JobView
from orchestrator.client.client import iter_completed
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
    with pytest.raises(JobCancelled, match=r"^job a-1 was cancelled\. To queue it again"):
        handle(state=State.CANCELLED, message="cancelled").result()
    asked_before_s = time.monotonic() - 1.0
    assert found.learn(job("a-1", State.RUNNING, changed=6), asked_before_s).state is State.CANCELLED


class Restored:
    """A server whose store was restored from a backup: its last change is 100, and it answers with these jobs."""

    def __init__(self, *jobs: JobView) -> None:
        self._jobs = {one.job_id: one for one in jobs}
        self.connection = Connection("http://127.0.0.1:1", transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/changes":
            newer = [one for one in self._jobs.values() if one.changed > int(request.url.params["after"])]
            return httpx.Response(200, text=Changes(jobs=tuple(newer), last=100).model_dump_json())
        return httpx.Response(200, text=self._jobs[request.url.path.rpartition("/")[2]].model_dump_json())

    def handle(self, changed: int) -> JobHandle:
        return JobHandle(self.connection, job("a-1", State.RUNNING, changed=changed))


def test_the_state_of_a_restored_store_is_learned_although_its_changes_are_smaller() -> None:
    server = Restored(job("a-1", State.SUCCEEDED, changed=90))
    found = server.handle(changed=150)
    assert [one.state for one in iter_completed(server.connection, [found], timeout_s=0.0)] == [State.SUCCEEDED]
    assert server.handle(changed=150).wait(timeout_s=0.0).state is State.SUCCEEDED


def test_each_of_two_handles_of_one_job_is_completed() -> None:
    server = Restored(job("a-1", State.SUCCEEDED, changed=90))
    one, other = server.handle(changed=80), server.handle(changed=85)
    assert list(iter_completed(server.connection, [one, other, one], timeout_s=0.0)) == [one, other]
    assert other.view.state is State.SUCCEEDED
