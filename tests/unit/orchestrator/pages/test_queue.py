"""What the queue's commands print."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.text import day, format_time, when_written
from orchestrator.api import EventView, JobView, NodeView, QuotaView, TenantView, UsageRow, WhyView
from orchestrator.pages.cluster import nodes_page, tenants_page, usage_page
from orchestrator.pages.queue import event_lines, in_order, queue_page, status_page
from orchestrator.pages.tables import columns
from orchestrator.queue.states import WOULD_FAIL_AGAIN, DesiredState, Reason, State
from tests.support.jobviews import NOW_S, job


def running(job_id: str, **changes: Any) -> JobView:
    facts: dict[str, Any] = {"reason": Reason.ANSWERED, "attempt": 1, "started_s": NOW_S - 3720.0, "step": 40}
    return job(job_id, State.RUNNING, **facts | {"total_steps": 900, "remaining_s": 200.0} | changes)


def why(**changes: Any) -> WhyView:
    facts = {"text": "it waits", "expected_start_s": NOW_S + 90.0, "earliest_start_s": None, "latest_start_s": None}
    return WhyView.model_validate(facts | changes)


def test_no_escape_code_of_a_job_reaches_a_terminal() -> None:
    one = running("a", labels={"note": "\x1b[2Jx"}, metrics={"\x1b[31mloss": 1.0}, run="/runs/\x9bx")
    page = status_page(one, None, [], NOW_S) + queue_page([one], {}, {}, NOW_S, 200)
    assert "note= [2Jx" in page and "\x1b" not in page and "\x9b" not in page


def test_what_runs_comes_first_and_what_waits_by_priority_and_number() -> None:
    jobs = [
        job("late", number=5),
        job("ended", State.FAILED, ended_s=NOW_S),
        job("urgent", number=9, priority=5),
        running("second", started_s=2.0),
        job("first", number=4),
        job("paused", number=1, wanted=DesiredState.PAUSE),
        running("old", started_s=1.0),
    ]
    assert [one.job_id for one in in_order(jobs)] == ["old", "second", "urgent", "first", "late", "paused", "ended"]


def test_the_queue_says_of_each_job_what_is_next() -> None:
    jobs = [
        running("runs-1"),
        job("waits-1", after=("runs-1",)),
        job("waits-2"),
        job("paused-1", wanted=DesiredState.PAUSE),
        job("back-1", reason=Reason.NODE_LOST, message="node n1 was lost", step=40, total_steps=900),
        job("bad-1", State.FAILED, reason=Reason.RUN_FAILED, message="out of memory", ended_s=NOW_S - 60.0),
        job("good-1", State.SUCCEEDED, metrics={"loss": 0.25, "eval_loss": 0.5}, ended_s=NOW_S - 3 * 86400.0),
    ]
    page = queue_page(jobs, {State.QUEUED: 4, State.RUNNING: 1, State.FAILED: 7}, {"waits-2": why()}, NOW_S, None)
    lines = {line.split()[0]: line for line in page.splitlines()}
    assert "1h02m" in lines["runs-1"] and "40/900" in lines["runs-1"] and lines["runs-1"].endswith("about 3m20s left")
    assert lines["waits-1"].endswith("after runs-1") and "2m05s" in lines["waits-1"] and "4 x 1 GPU" in lines["waits-1"]
    assert lines["waits-2"].endswith("starts in about 1m30s")
    assert lines["paused-1"].endswith("fleetune resume paused-1") and " paused " in lines["paused-1"]
    assert lines["back-1"].endswith("node n1 was lost") and "40/900" in lines["back-1"]
    assert lines["bad-1"].endswith("out of memory") and "1m00s ago" in lines["bad-1"]
    assert lines["good-1"].endswith("train loss 0.25  loss 0.5") and "3.0 days ago" in lines["good-1"]
    assert page.splitlines()[-1] == "4 queued (1 paused), 1 running, 7 failed (1 shown)"


def test_an_empty_queue_says_how_to_fill_it() -> None:
    assert "fleetune submit job.yaml" in queue_page([], {State.FAILED: 3}, {}, NOW_S, None)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_tables_fit_the_terminal_and_never_lose_the_first_column(width: int) -> None:
    jobs = [running(f"a-rather-long-name-{number}", tenant=f"team-{number}", priority=number) for number in range(3)]
    page = queue_page(jobs, {State.RUNNING: 3}, {}, NOW_S, width)
    assert max(map(len, page.splitlines())) <= width
    assert all(one.job_id in page for one in jobs)


def test_columns_without_values_are_left_out() -> None:
    assert columns(("A", "B", "C"), [("1", "", "3")]) == "A  C\n1  3"
    assert columns(("A", "B"), []) == "A  B"


def test_labels_tell_equal_jobs_apart() -> None:
    jobs = [job(f"mails-{one}", labels={"train.learning_rate": f"{one}e-05"}) for one in (1, 5)]
    lines = queue_page(jobs, {State.QUEUED: 2}, {}, NOW_S, None).splitlines()
    assert "SET" in lines[0] and "learning_rate=1e-05" in lines[1] and "learning_rate=5e-05" in lines[2]
    assert "train.learning_rate=5e-05" in status_page(jobs[1], None, (), NOW_S)


def test_the_queue_says_that_the_machines_do_not_answer() -> None:
    page = queue_page([job("runs-1")], {State.RUNNING: 1}, {}, NOW_S, None, unanswered="no Ray dashboard answers")
    assert page.endswith(": no Ray dashboard answers") and "the machines do not answer" in page
    assert "do not answer" not in queue_page([job("runs-1")], {State.RUNNING: 1}, {}, NOW_S, None)


def test_paused_jobs_are_counted_apart_with_the_time_since_they_were_paused() -> None:
    paused = job("paused-1", wanted=DesiredState.PAUSE, waiting_since_s=NOW_S - 300.0)
    page = queue_page([paused], {State.QUEUED: 1}, {}, NOW_S, None)
    assert "5m00s" in page and page.endswith("1 paused")
    page = queue_page([paused, job("waits-1")], {State.QUEUED: 2}, {}, NOW_S, None)
    assert page.endswith("2 queued (1 paused)")
    assert queue_page([paused], {State.QUEUED: 9}, {}, NOW_S, None).endswith("9 queued (1 shown, 1 paused)")


def test_ended_jobs_are_counted_where_they_are_asked_for_also_if_none_of_a_state_is_shown() -> None:
    counts = {State.RUNNING: 1, State.SUCCEEDED: 3, State.FAILED: 1}
    ended, runs = job("a-1", State.SUCCEEDED, ended_s=NOW_S), job("b-1", State.RUNNING)
    assert queue_page([ended], counts, {}, NOW_S, None).endswith(
        "1 running (0 shown), 3 succeeded (1 shown), 1 failed (0 shown)"
    )
    failed = {State.FAILED: 1}
    assert queue_page([], failed, {}, NOW_S, None, [State.FAILED]).endswith("1 failed (0 shown)")
    assert queue_page([runs], counts, {}, NOW_S, None).endswith("1 running")


def test_a_long_error_is_cut_in_the_queue_and_whole_in_the_status() -> None:
    failed = job("bad-1", State.FAILED, reason=Reason.RUN_FAILED, message="why " * 100, ended_s=NOW_S)
    assert max(map(len, queue_page([failed], {State.FAILED: 1}, {}, NOW_S, None).splitlines())) < 200
    assert ("why " * 100).strip() in status_page(failed, None, (), NOW_S)


def test_the_page_of_a_job_has_what_is_known_and_nothing_else() -> None:
    events = [EventView(number=1, at_s=NOW_S, kind="submitted", message="submitted by anna", job_id="a-1")]
    page = status_page(job("a-1", priority=7, after=("b-1",)), why(), events, NOW_S)
    for part in (
        "queued (submitted)",
        "vision (submitted by anna)",
        "b-1",
        "it waits",
        "submitted by anna",
    ):
        assert part in page
    assert "attempt" not in page and "ended" not in page
    page = status_page(running("a-1", placement=(("n1", 4),), interruptions=2, attempt=3), None, (), NOW_S)
    for part in ("state      running\n", "n1 (4)", "3, interrupted 2 times", "fleetune logs a-1 -f", "3m20s"):
        assert part in page
    starting = job("a-1", State.STARTING, reason=Reason.GRANTED, message="on n1", attempt=1)
    assert "state      starting: on n1\n" in status_page(starting, None, (), NOW_S)
    paused = job("a-1", wanted=DesiredState.PAUSE, reason=Reason.PAUSED, message="paused")
    page = status_page(paused, None, (), NOW_S)
    assert "state      paused\n" in page and "to resume  fleetune resume a-1" in page
    stopping = job("a-1", State.STOPPING, reason=Reason.PAUSED, message="paused")
    assert "stopping (paused)\n" in status_page(stopping, None, (), NOW_S)
    failed = job("a-1", State.FAILED, reason=Reason.TIMED_OUT, message="ran for too long", ended_s=NOW_S)
    page = status_page(failed, None, (), NOW_S)
    assert "failed (timed-out): ran for too long" in page and "to retry   fleetune retry a-1" in page


@pytest.mark.parametrize("reason", WOULD_FAIL_AGAIN)
def test_no_retry_is_offered_for_a_job_that_would_fail_again(reason: Reason) -> None:
    page = status_page(job("a-1", State.FAILED, reason=reason, ended_s=NOW_S), None, (), NOW_S)
    assert f"failed ({reason})" in page and "retry" not in page


def test_numbers_that_are_none_do_not_break_a_page() -> None:
    page = status_page(running("a-1", metrics={"loss": None, "eval_loss": 2.0}), None, (), NOW_S)
    assert "loss 2" in page


def node(node_id: str, **changes: Any) -> NodeView:
    facts: dict[str, Any] = {
        "node_id": node_id, "cpus": 64, "gpus": 8, "accelerator_type": "H100", "usable": True, "foreign_cpus": 0,
        "foreign_gpus": 0, "order": "use", "by": "", "reason": "", "since_s": None, "held": (),
    }  # fmt: skip
    return NodeView(**facts | changes)


def test_nodes_are_shown_with_their_holders_and_orders() -> None:
    page = nodes_page(
        [
            node("n1", held=(("a-1", 4),), foreign_gpus=2),
            node("n2" + "f" * 60, order="drain", reason="fan", by="anna"),
            node("n3", usable=False),
        ],
        100,
    )
    assert "a-1 (4)" in page and "2 GPU" in page and "drained" in page and "fan (anna)" in page and "not usable" in page
    assert max(map(len, page.splitlines())) <= 100


def test_tenants_usage_and_events_are_lines() -> None:
    limit = (QuotaView(accelerator_type="A100", gpus=8), QuotaView(accelerator_type=None, gpus=16))
    tenant = TenantView(name="vision", weight=2.0, guaranteed=(), limit=limit, running=1, queued=2, gpus=4)
    assert "8 A100, 16" in tenants_page([tenant], None)
    rows = [
        UsageRow(month=month, tenant="vision", gpu_hours=1234.5, cpu_hours=0.25, jobs=3)
        for month in ("2026-10", "2026-11")
    ]
    assert usage_page(rows, None).splitlines()[-1].split() == ["total", "2,469.00", "0.50"]
    assert usage_page([], None) == "no usage"
    event = EventView(number=1, at_s=NOW_S, kind="moved", message="running", job_id=None)
    assert event_lines([event]) == ["2027-01-15 08:00:00Z  cluster  running"]


def event(kind: str, message: str, at_s: float = NOW_S, job_id: str | None = "a-1", **data: Any) -> EventView:
    return EventView(number=1, at_s=at_s, kind=kind, message=message, job_id=job_id, data=data)


@pytest.mark.parametrize(
    ("kind", "message", "data", "said"),
    [
        ("queued", "submitted by anna", {"reason": "submitted", "by": "anna"}, "submitted by anna"),
        ("queued", "retried by anna", {"reason": "retried", "by": "anna"}, "retried by anna"),
        ("queued", "node n1 is gone", {"reason": "node-lost"}, "is back in the queue: node n1 is gone"),
        ("queued", "", {"reason": "node-lost"}, "waits in the queue"),
        ("queued", "paused", {"reason": "paused"}, "is paused"),
        ("starting", "on n1, n2", {"reason": "granted", "placement": [["n1", 1], ["n2", 1]]}, "starts on n1, n2"),
        ("running", "answered", {"reason": "answered"}, "runs"),
        ("stopping", "paused", {"reason": "paused"}, "is pausing"),
        ("stopping", "preempted: b-2 goes first", {}, "is stopping: preempted: b-2 goes first"),
        ("succeeded", "finished", {"reason": "finished"}, "has succeeded"),
        ("failed", "out of memory", {}, "has failed: out of memory"),
        ("cancelled", "cancelled", {"reason": "cancelled"}, "was cancelled"),
        ("asked", "any sentence", {"by": "anna", "wanted": "cancel"}, "anna asked it to end"),
        ("asked", "any sentence", {"by": "anna", "wanted": "pause"}, "anna asked it to pause"),
        (
            "asked",
            "",
            {"by": "an asks: x", "priority": 9, "wanted": "run"},
            "an asks: x lets it go on and gave it priority 9",
        ),
        ("on-end", "what is to follow", {}, "what is to follow"),
    ],
)
def test_every_event_has_a_subject_and_a_verb(kind: str, message: str, data: dict[str, Any], said: str) -> None:
    (line,) = event_lines([event(kind, message, **data)])
    assert line == f"2027-01-15 08:00:00Z  a-1  {said}"


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [
        ("queued", "submitted by anna", "submitted by anna"),
        ("queued", "node n1 is gone", "node n1 is gone"),
        ("starting", "on n1, n2", "starts: on n1, n2"),
        ("asked", "anna asks: cancel", "anna asks: cancel"),
    ],
)
def test_an_event_without_data_shows_its_message(kind: str, message: str, said: str) -> None:
    (line,) = event_lines([event(kind, message)])
    assert line == f"2027-01-15 08:00:00Z  a-1  {said}"


def test_an_end_that_a_program_came_to_by_itself_is_one_event() -> None:
    end = [event("stopping", "exit code 3"), event("failed", "exit code 3")]
    others = [event("stopping", "exit code 3", job_id="b-1"), event("stopping", "cancelled", NOW_S - 2.0)]
    lines = event_lines([*others, *end])
    assert [line.partition("Z  ")[2] for line in lines] == [
        "b-1  is stopping: exit code 3",
        "a-1  is ending, as it was asked to",
        "a-1  has failed: exit code 3",
    ]


def test_moments_are_in_utc_and_say_so() -> None:
    assert format_time(NOW_S) == "2027-01-15 08:00:00Z" and format_time(None) == "" and day(NOW_S) == "2027-01-15"
    assert when_written("2026-11-24T13:00:00.25+01:00") == "2026-11-24 12:00:00Z"
    assert when_written("2026-11-24T12:00:00Z") == when_written("2026-11-24T12:00:00") == "2026-11-24 12:00:00Z"
    assert when_written("long ago") == "long ago" and when_written("") == ""
    ended = job("a-1", State.FAILED, ended_s=NOW_S)
    assert "ended      2027-01-15 08:00:00Z" in status_page(ended, None, (), NOW_S)


def test_a_start_that_goes_by_nothing_is_not_shown_as_a_time() -> None:
    page = queue_page([job("waits-1")], {State.QUEUED: 1}, {"waits-1": why(is_guess=True)}, NOW_S, None)
    assert "start unknown: no run time is known yet" in page and "starts in" not in page
