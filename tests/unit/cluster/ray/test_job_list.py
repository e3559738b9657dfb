"""Ray's list of jobs: how often it is read, what is deleted from it, and that a newer caller is always seen."""

from __future__ import annotations

import errno
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.backend import MAX_OUTPUT_BYTES, Launch
from cluster.errors import BackendUnreachable, Fenced
from cluster.ray.backend import FENCE_KEY, HARD_STOP, KIND_KEY, PROGRAM, QUEUE_KEY, RayJobsBackend
from cluster.ray.client import OutputRetention, entries_to_delete

DAY_S = 86_400.0


class Dashboard:
    """Ray's client as `RayJobsBackend` uses it, with the entries in a dictionary."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.lists = self.rows = self.logs_read = 0
        self.stopped: list[str] = []
        self.log = (200, "")  # status and text of Ray's answer to a request for any log

    def list_jobs(self) -> list[Any]:
        self.lists += 1
        self.rows += len(self.jobs)
        return list(self.jobs.values())

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], **_: Any) -> None:
        if submission_id in self.jobs:
            raise RuntimeError(f"{submission_id} exists")
        self.add(submission_id, "RUNNING", metadata)

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)

    def delete_job(self, name: str) -> None:
        if self.jobs[name].status.value == "RUNNING":
            raise RuntimeError("it runs")
        del self.jobs[name]

    def job_or_none(self, name: str) -> Any:
        return self.jobs.get(name)

    def _do_request(self, method: str, endpoint: str, **_: Any) -> Any:
        assert endpoint.startswith("/api/v0/logs/")
        self.logs_read += 1
        status, text = self.log
        return SimpleNamespace(
            status_code=status, text=text, iter_content=lambda size: [text.encode()], close=lambda: None
        )

    def add(self, name: str, status: str, metadata: dict[str, str], ended_s: float | None = None) -> None:
        self.jobs[name] = SimpleNamespace(
            submission_id=name,
            status=SimpleNamespace(value=status),
            metadata=metadata,
            end_time=None if ended_s is None else int(ended_s * 1000),
            driver_exit_code=0,
            driver_node_id=None,
            entrypoint="true",
            message="",
            error_type=None,
        )

    def add_ended(self, number: int, age_s: float) -> str:
        metadata = {KIND_KEY: PROGRAM, QUEUE_KEY: "", FENCE_KEY: "1"}
        self.add(f"old-{number}", "SUCCEEDED", metadata, time.time() - age_s)
        return f"old-{number}"


def backend_on(dashboard: Dashboard, **options: Any) -> RayJobsBackend:
    backend = RayJobsBackend("http://nowhere:1", **options)
    backend._connected = dashboard
    return backend


def launch(name: str) -> Launch:
    return Launch(name, ("true",))


def test_a_pass_with_many_starts_reads_the_list_once_however_many_attempts_are_over() -> None:
    dashboard = Dashboard()
    old = [dashboard.add_ended(number, 60.0) for number in range(1000)]
    backend = backend_on(dashboard)
    backend.fence(2)
    before = dashboard.lists
    backend.submissions()
    for number in range(50):
        backend.start(launch(f"new-{number}"), 2)
    backend.start(launch("new-1"), 2)  # which is known
    backend.forget(old)
    backend.others()
    backend.ended_elsewhere(["somebody"])
    assert dashboard.lists - before == 1
    assert {f"new-{number}" for number in range(50)} <= dashboard.jobs.keys()
    assert {one.submission for one in backend.submissions()} == {f"new-{number}" for number in range(50)}


def test_a_caller_that_another_one_has_followed_starts_nothing() -> None:
    dashboard = Dashboard()
    first, second, late = backend_on(dashboard), backend_on(dashboard), backend_on(dashboard)
    first.fence(3)
    first.start(launch("a"), 3)
    second.fence(7)
    with pytest.raises(Fenced, match="caller 7 has been here"):
        first.start(launch("b"), 3)
    with pytest.raises(Fenced):
        late.fence(5)
    second.start(launch("b"), 7)
    assert {"a", "b"} <= dashboard.jobs.keys()


def test_hard_stops_are_not_repeated_while_they_run_and_forgotten_with_their_programs() -> None:
    dashboard = Dashboard()
    backend = backend_on(dashboard)
    backend.start(launch("a"), 1)
    dashboard.jobs["a"].driver_node_id = "n1"
    for _ in range(2):
        backend.stop("a", hard=True)
        backend.submissions()
    assert dashboard.stopped == ["a", "a"]
    assert [name.startswith(f"a.{HARD_STOP}-") for name in dashboard.jobs if name.startswith("a.")] == [True]
    dashboard.jobs["a"].status.value = "STOPPED"
    backend.submissions()
    assert backend._hard_stops == {}


def test_callers_that_come_at_once_form_a_chain() -> None:
    dashboard = Dashboard()
    one, other, third = backend_on(dashboard), backend_on(dashboard), backend_on(dashboard)
    for backend in (one, other, third):
        backend.submissions()  # each has seen that nobody was there
    one._take_fence(dashboard, 2)
    other._take_fence(dashboard, 4)
    with pytest.raises(Fenced):
        third._take_fence(dashboard, 3)
    with pytest.raises(Fenced):
        one.start(launch("a"), 2)
    other.start(launch("a"), 4)


def test_a_caller_is_known_again_after_the_head_was_started_anew() -> None:
    dashboard = Dashboard()
    first, second = backend_on(dashboard), backend_on(dashboard)
    first.fence(3)
    dashboard.jobs.clear()
    first.submissions()
    second.fence(4)
    with pytest.raises(Fenced):
        first.start(launch("a"), 3)


def test_entries_of_attempts_that_are_over_are_deleted_and_those_that_may_be_current_are_not() -> None:
    dashboard = Dashboard()
    keeping = OutputRetention(kept_s=DAY_S, most=10, least_s=60.0)
    backend = backend_on(dashboard, keeping=keeping)
    very_old, old = [dashboard.add_ended(number, 2 * DAY_S) for number in (1, 2)], dashboard.add_ended(3, 3600.0)
    backend.submissions()
    backend.forget([very_old[0], old])
    assert very_old[0] not in dashboard.jobs  # its retention is over
    assert {very_old[1], old} <= dashboard.jobs.keys()  # nobody has said that it is over; and not old enough
    many = [dashboard.add_ended(number, 120.0) for number in range(10, 30)]
    backend.submissions()
    backend.forget(many)
    assert len(dashboard.jobs.keys() & {old, *many}) == 10
    assert {one.submission for one in backend.submissions()} == {very_old[1]}


def test_the_oldest_are_deleted_first_and_none_that_has_only_just_ended() -> None:
    ended_s = {f"job{age}": 10_000.0 - age for age in range(0, 1000, 100)} | {"helper": 9_999.0}
    keeping = OutputRetention(kept_s=700.0, most=3, least_s=250.0)
    found = entries_to_delete(ended_s, [*ended_s, "unknown"], {"helper"}, 10_000.0, keeping)
    assert found == ["helper", *(f"job{age}" for age in range(900, 250, -100))]


def with_log(status: int, text: str) -> tuple[RayJobsBackend, str]:
    dashboard = Dashboard()
    dashboard.log = (status, text)
    name = dashboard.add_ended(1, 60.0)
    dashboard.jobs[name].driver_node_id = "aa"
    return backend_on(dashboard), name


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, "404: Not Found"),
        (500, "A file is not found at: /tmp/ray/session_1/logs/job-driver-old-1.log"),
        (500, "Agent for node id: aa doesn't exist."),
    ],
)
def test_a_log_that_does_not_exist_is_empty(status: int, text: str) -> None:
    backend, name = with_log(status, text)
    assert backend.output(name) == b""


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (429, '{"result": false, "msg": "Max number of in-progress requests=100 reached."}'),
        (500, "<AioRpcError of RPC that terminated with: status = StatusCode.UNAVAILABLE>"),
        (503, "no healthy upstream"),
    ],
)
def test_a_log_that_cannot_be_read_now_is_not_taken_for_an_empty_one(status: int, text: str) -> None:
    backend, name = with_log(status, text)
    with pytest.raises(BackendUnreachable, match=f"status {status} for the log of old-1"):
        backend.output(name)


def test_a_long_log_is_not_read_from_its_begin_for_each_part() -> None:
    """Ray has no other way to read a part of a log, so 100 parts of 1 MiB would make it send 5 GiB."""
    text = "".join(f"{number:07}\n" for number in range(7 << 16))  # 3.5 MiB
    backend, name = with_log(200, f"\x1e\n{text}")
    dashboard = backend._connected
    content, got, lead = text.encode(), b"", 1000  # parts overlap: a secret may begin in the one before
    while part := backend.output(name, max(len(got) - lead, 0))[min(len(got), lead) :]:
        got += part
    assert got == content and dashboard.logs_read <= 4
    dashboard.log = (200, f"\x1e\n{text}more")
    assert backend.output(name, len(content)) == b"more"
    assert backend.output(name, 3) == content[3 : 3 + MAX_OUTPUT_BYTES]


def test_a_dashboard_that_refuses_connections_is_told_without_the_words_of_the_http_libraries() -> None:
    beneath = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    hidden = OSError("HTTPConnectionPool(host='head', port=8265): Max retries exceeded with url: /api/v0/nodes")
    hidden.__context__ = RuntimeError("Failed to establish a new connection")
    hidden.__context__.__cause__ = beneath

    backend = RayJobsBackend.__new__(RayJobsBackend)
    backend._dashboard, backend._connected = "http://head:8265", object()
    with pytest.raises(BackendUnreachable) as caught, backend._asking():
        raise hidden
    told = "no Ray dashboard answers at http://head:8265 (Connection refused). Check that the cluster is up"
    assert str(caught.value) == told
