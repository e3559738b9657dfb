"""What becomes of one job: the table of states, the rules, the budgets of retries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.backend import Phase, Submission
from orchestrator.queue.clock import Timing
from orchestrator.queue.records import Job
from orchestrator.queue.retry import BUDGETS, may_start_at_s, state_after_stop, why_ended
from orchestrator.queue.states import ENDED, MAY_GO_TO, WOULD_FAIL_AGAIN, DesiredState, Reason, State
from orchestrator.queue.transitions import Observation, next_transition
from orchestrator.queue.wording import advice
from tests.support.queuejobs import NOW_S, job

TIMING = Timing(silent_s=6 * 3600.0)


def seen(*submissions: Submission, timing: Timing = TIMING, **more: Any) -> Observation:
    nodes = more.pop("nodes", frozenset({"n0", "n1"}))
    return Observation(NOW_S, {one.submission: one for one in submissions}, nodes=nodes, timing=timing, **more)


def of(one: Job, phase: Phase, **more: Any) -> Submission:
    return Submission(one.submission, phase, **more)


def went(one: Job, by: Observation) -> tuple[State, Reason] | None:
    move = next_transition(one, by)
    if move is None:
        return None
    assert (move.job_id, move.expect, move.attempt) == (one.job_id, one.state, one.attempt)
    assert move.to in MAY_GO_TO[one.state]
    return move.to, move.reason


def test_every_state_has_a_row_and_an_end_is_an_end() -> None:
    assert set(MAY_GO_TO) == set(State)
    assert {state for state, to in MAY_GO_TO.items() if not to} == ENDED
    for state in State:
        next_transition(job(state=state), seen())


def test_a_driver_that_runs_and_ends_well_takes_its_job_through() -> None:
    starting, running = job(state=State.STARTING), job(state=State.RUNNING)
    assert went(starting, seen()) is None
    assert went(starting, seen(of(starting, Phase.PENDING))) is None
    assert went(starting, seen(of(starting, Phase.RUNNING))) == (State.RUNNING, Reason.ANSWERED)
    assert went(running, seen(of(running, Phase.RUNNING))) is None
    for one in (starting, running):
        assert went(one, seen(of(one, Phase.SUCCEEDED, exit_code=0))) == (State.SUCCEEDED, Reason.FINISHED)


@pytest.mark.parametrize(
    ("phase", "code", "reason"),
    [
        (Phase.FAILED, 2, Reason.BAD_INPUT),
        (Phase.FAILED, 1, Reason.RUN_FAILED),
        (Phase.FAILED, 75, Reason.DRIVER_LOST),
        (Phase.FAILED, -9, Reason.DRIVER_KILLED),
        (Phase.FAILED, 76, Reason.OUT_OF_MEMORY),
        (Phase.FAILED, 77, Reason.DIVERGED),
        (Phase.FAILED, None, Reason.DRIVER_LOST),
        (Phase.LOST, None, Reason.DRIVER_LOST),
        (Phase.STOPPED, 130, Reason.DRIVER_LOST),
        (Phase.FAILED, 130, Reason.DRIVER_LOST),
    ],
)
def test_how_a_driver_ended_says_why_its_job_stops(phase: Phase, code: int | None, reason: Reason) -> None:
    one = job(state=State.RUNNING)
    assert went(one, seen(of(one, phase, exit_code=code))) == (State.STOPPING, reason)


def test_a_driver_that_is_not_known_is_lost_once_it_ran_and_to_be_started_before() -> None:
    assert went(job(state=State.RUNNING), seen()) == (State.STOPPING, Reason.DRIVER_LOST)
    assert went(job(state=State.STARTING), seen()) is None


def test_a_driver_that_does_not_come_up_is_started_again() -> None:
    one = job(state=State.STARTING, started_s=NOW_S - 7000.0)
    pending = {one.submission: 700.0}
    assert went(one, seen(of(one, Phase.PENDING), pending_s=pending)) == (State.STOPPING, Reason.NOT_STARTED)
    assert went(one, seen(of(one, Phase.PENDING), pending_s=pending, timing=Timing(pending_s=800.0))) is None
    assert went(one, seen(of(one, Phase.PENDING))) is None  # no server has looked in these two hours


def test_a_job_runs_once_its_driver_has_registered_and_not_when_the_machines_say_so() -> None:
    one = job(state=State.STARTING, started_s=NOW_S - 800.0)  # it came up late, and that counts no more
    there = of(one, Phase.RUNNING)
    assert went(one, seen(there, silent_s={one.submission: 599.0})) is None
    assert went(replace(one, heard_s=NOW_S), seen(there, silent_s={})) == (State.RUNNING, Reason.ANSWERED)
    late = seen(there, silent_s={one.submission: 601.0})
    for state in (State.STARTING, State.RUNNING):  # an older server took the machines' word
        assert went(replace(one, state=state), late) == (State.STOPPING, Reason.SILENT)
    assert went(one, seen(there)) == (State.RUNNING, Reason.ANSWERED)  # made-up machines, whose drivers do not speak


def test_a_driver_that_is_silent_for_hours_is_stopped_and_one_that_ended_meanwhile_is_judged_by_its_end() -> None:
    one = job(state=State.RUNNING, heard_s=NOW_S - 9 * 3600.0)
    silent = {one.submission: 6 * 3600.0 + 1.0}
    assert went(one, seen(of(one, Phase.RUNNING), silent_s={one.submission: 6 * 3600.0})) is None
    assert went(one, seen(of(one, Phase.RUNNING), silent_s=silent)) == (State.STOPPING, Reason.SILENT)
    assert went(one, seen(of(one, Phase.SUCCEEDED), silent_s=silent)) == (State.SUCCEEDED, Reason.FINISHED)
    assert state_after_stop(replace(one, state=State.STOPPING, reason=Reason.SILENT))[0] is State.QUEUED


def test_what_can_never_start_is_not_tried_again() -> None:
    one = job(state=State.STARTING)
    assert went(one, seen(refused={one.submission: "no such program"})) == (State.STOPPING, Reason.BAD_INPUT)
    stopping = replace(one, state=State.STOPPING, reason=Reason.BAD_INPUT, message="no such program")
    assert went(stopping, seen()) == (State.FAILED, Reason.BAD_INPUT)


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
@pytest.mark.parametrize(
    ("wanted", "reason", "lands"),
    [(DesiredState.CANCEL, Reason.CANCELLED, State.CANCELLED), (DesiredState.PAUSE, Reason.PAUSED, State.QUEUED)],
)
def test_what_its_owner_wants_is_done_once_it_has_stopped(
    state: State, wanted: DesiredState, reason: Reason, lands: State
) -> None:
    one = job(state=state, wanted=wanted)
    assert went(one, seen(of(one, Phase.RUNNING))) == (State.STOPPING, reason)
    stopping = replace(one, state=State.STOPPING, reason=reason)
    assert went(stopping, seen(of(one, Phase.RUNNING))) is None
    assert went(stopping, seen(of(one, Phase.STOPPED))) == (lands, reason)
    assert went(stopping, seen()) == (lands, reason)


def test_a_job_that_was_cancelled_while_it_stopped_for_another_reason_is_cancelled() -> None:
    one = job(state=State.STOPPING, reason=Reason.PREEMPTED, wanted=DesiredState.CANCEL)
    assert went(one, seen(of(one, Phase.STOPPED))) == (State.CANCELLED, Reason.CANCELLED)


def test_a_job_that_finished_before_it_was_stopped_has_succeeded() -> None:
    one = job(state=State.STOPPING, reason=Reason.PREEMPTED)
    assert went(one, seen(of(one, Phase.SUCCEEDED))) == (State.SUCCEEDED, Reason.FINISHED)


def test_a_lost_node_stops_a_job_and_its_lease_is_kept_until_the_driver_is_seen_to_be_gone() -> None:
    one = job(state=State.RUNNING, gpus=4, on=(("n0", 2), ("n9", 2)))
    assert went(one, seen(of(one, Phase.RUNNING))) == (State.STOPPING, Reason.NODE_LOST)
    assert "n9 is gone" in str(next_transition(one, seen(of(one, Phase.RUNNING))))
    stopping = replace(one, state=State.STOPPING, reason=Reason.NODE_LOST)
    assert went(stopping, seen(of(one, Phase.RUNNING))) is None
    assert went(stopping, seen(of(one, Phase.LOST))) == (State.QUEUED, Reason.NODE_LOST)


def test_nobody_is_stopped_for_nodes_that_nobody_could_see() -> None:
    one = job(state=State.RUNNING, on=(("n9", 1),))
    assert went(one, seen(of(one, Phase.RUNNING), nodes=None)) is None


def test_a_node_that_is_drained_is_left_by_those_that_may_be_interrupted() -> None:
    one = job(state=State.RUNNING)
    draining = seen(of(one, Phase.RUNNING), draining=frozenset({"n0"}))
    assert went(one, draining) == (State.STOPPING, Reason.DRAINED)
    stays = replace(one, preemptible=False)
    assert went(stays, draining) is None
    assert went(stays, replace(draining, overdue=frozenset({"n0"}))) == (State.STOPPING, Reason.DRAINED)
    assert went(job(state=State.RUNNING, on=(("n1", 1),)), draining) is None


def test_the_run_time_of_all_attempts_counts_against_its_maximum() -> None:
    one = job(state=State.RUNNING, max_runtime_s=5000.0)  # runs for 3600 s now
    assert went(one, seen(of(one, Phase.RUNNING))) is None
    late = replace(one, attained_s=1500.0)
    assert went(late, seen(of(one, Phase.RUNNING))) == (State.STOPPING, Reason.TIMED_OUT)
    stopping = replace(late, state=State.STOPPING, reason=Reason.TIMED_OUT)
    assert went(stopping, seen(of(one, Phase.STOPPED))) == (State.FAILED, Reason.TIMED_OUT)


def test_a_job_whose_parent_has_failed_fails_with_a_word_on_it() -> None:
    one = job(after=("first", "second"))
    assert went(one, seen()) is None
    move = next_transition(one, seen(failed={"second": "was cancelled"}))
    assert move is not None and (move.to, move.reason) == (State.FAILED, Reason.PARENT_FAILED)
    assert move.message == "second, which it waits for, was cancelled"


def test_each_reason_of_stopping_lands_somewhere_and_budgets_are_apart() -> None:
    for reason, budget in BUDGETS.items():
        one = job(state=State.STOPPING, reason=reason, retries={Reason.NODE_LOST: 3, Reason.PREEMPTED: 99})
        assert state_after_stop(one)[0] is State.QUEUED
        if budget is not None:
            state, text = state_after_stop(replace(one, retries={reason: budget}))
            assert state is State.FAILED and str(budget) in text


def test_what_failed_at_once_is_not_started_at_once_again() -> None:
    first = job(reason=Reason.DRIVER_LOST, retries={Reason.DRIVER_LOST: 1}, waiting_since_s=NOW_S)
    assert may_start_at_s(first) == NOW_S + 10.0
    assert may_start_at_s(replace(first, retries={Reason.DRIVER_LOST: 3})) == NOW_S + 40.0
    assert may_start_at_s(replace(first, retries={Reason.DRIVER_LOST: 30})) == NOW_S + 600.0
    assert may_start_at_s(replace(first, reason=Reason.PREEMPTED)) <= NOW_S
    assert may_start_at_s(job(not_before_s=NOW_S + 5.0)) == NOW_S + 5.0


def test_a_job_that_runs_out_of_memory_is_tried_again_twice_after_a_pause_and_then_fails() -> None:
    reason = Reason.OUT_OF_MEMORY
    stopping = job(state=State.STOPPING, reason=reason, message="rank 0 ran out of memory")
    assert state_after_stop(replace(stopping, retries={reason: 1})) == (State.QUEUED, "rank 0 ran out of memory")
    assert state_after_stop(replace(stopping, retries={reason: 2}))[0] is State.FAILED
    assert may_start_at_s(job(reason=reason, retries={reason: 1}, waiting_since_s=NOW_S)) == NOW_S + 10.0
    assert "memory" in advice(reason, "x")


def test_a_job_that_diverged_fails_without_another_attempt_and_no_retry_is_advised() -> None:
    stopping = job(state=State.STOPPING, reason=Reason.DIVERGED, message="the loss of step 3 is nan")
    assert state_after_stop(stopping) == (State.FAILED, "the loss of step 3 is nan")
    assert "a lower train.learning_rate" in advice(Reason.DIVERGED, "x")
    assert not any("retry" in advice(reason, "x") for reason in WOULD_FAIL_AGAIN)


def test_an_end_without_a_code_is_no_failure_of_the_run() -> None:
    assert why_ended(Submission("x-1", Phase.FAILED, None, "the machine is gone")) == (
        Reason.DRIVER_LOST,
        "the machine is gone",
    )


def test_a_driver_that_was_killed_is_told_from_one_that_failed() -> None:
    reason, text = why_ended(Submission("x-1", Phase.FAILED, -9))
    assert reason is Reason.DRIVER_KILLED and "out of memory" in text
    assert why_ended(Submission("x-1", Phase.FAILED, -15)) == (
        Reason.DRIVER_LOST,
        "the driver is gone without an outcome",
    )


def test_a_driver_that_is_gone_with_its_node_is_no_fault_of_the_driver() -> None:
    one = job(state=State.RUNNING)
    gone = seen(of(one, Phase.LOST), absent=frozenset({"n0"}))
    assert went(one, gone) == (State.STOPPING, Reason.NODE_LOST)
    assert went(one, seen(of(one, Phase.RUNNING), absent=frozenset({"n0"}))) is None  # it may be back in a moment


def test_a_start_that_may_still_happen_is_waited_for_before_its_nodes_are_given_away() -> None:
    one = job(state=State.STOPPING, reason=Reason.CANCELLED, wanted=DesiredState.CANCEL)
    assert went(one, seen(doubtful=frozenset({one.submission}))) is None
    assert went(one, seen()) == (State.CANCELLED, Reason.CANCELLED)
