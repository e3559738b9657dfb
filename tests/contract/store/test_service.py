"""What the store keeps for the service: follow-ups of ends, jobs of clients, signs of life, what counts as waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.queue.errors import KeyReused, NotLeader
from orchestrator.queue.records import Measured
from orchestrator.queue.retry import waits_s
from orchestrator.queue.states import ENDED, DesiredState, Reason, State
from orchestrator.queue.store import Change, Store, SubmissionKey
from tests.support.stores import RUN, START_S, go, lead, new, submit

PAUSE, GO_ON, CANCEL = (Change(wanted=wanted) for wanted in (DesiredState.PAUSE, DesiredState.RUN, DesiredState.CANCEL))


def ids(jobs: object) -> list[str]:
    return [job.job_id for job in jobs]  # type: ignore[attr-defined]


def test_an_end_is_due_until_it_was_followed(store: Store) -> None:
    plain, asked = submit(store), submit(store, on_end="{}")
    for job in (plain, asked):
        go(store, job, *RUN, State.SUCCEEDED)
    (due,) = store.followups_due()
    assert (due.job_id, due.on_end, due.followed) == (asked.job_id, "{}", 0)
    store.followed(due)
    assert store.followups_due() == []
    assert store.job(asked.job_id) == replace(due, followed=due.changed)


@pytest.mark.parametrize("end", sorted(ENDED - {State.SUCCEEDED}))
def test_each_end_of_a_job_that_is_put_back_is_due(store: Store, end: State) -> None:
    job = go(store, submit(store, on_end="{}"), end, reason=Reason.CANCELLED)
    again = store.retry(job.job_id, START_S, "anna")
    assert store.followups_due() == []
    store.followed(job)  # of the end before, and late
    second = go(store, again, end, reason=Reason.CANCELLED)
    assert ids(store.followups_due()) == [job.job_id]
    store.followed(second)
    assert store.followups_due() == []


def test_ends_are_due_in_the_order_of_submission_and_as_many_as_wanted(store: Store) -> None:
    jobs = store.submit([new(on_end="{}") for _ in range(5)], START_S)
    for job in reversed(jobs):
        go(store, job, State.CANCELLED, reason=Reason.CANCELLED)
    assert ids(store.followups_due(3)) == ids(jobs[:3])
    assert ids(store.followups_due()) == ids(jobs)


def test_jobs_of_clients_are_listed_until_they_have_ended(store: Store) -> None:
    submit(store)
    first, second = submit(store, client="one"), submit(store, client="two")
    second = go(store, second, *RUN)
    assert [(job.job_id, job.client) for job in store.of_clients()] == [(first.job_id, "one"), (second.job_id, "two")]
    go(store, second, State.SUCCEEDED)
    assert ids(store.of_clients()) == [first.job_id]


def test_the_first_sign_of_life_of_an_attempt_is_a_change_and_later_ones_are_not(store: Store) -> None:
    waits, job = submit(store), go(store, submit(store), *RUN)
    assert job.heard_s is None and store.heard() == {f"{job.job_id}-1": None}
    store.measure([Measured(job.job_id, 1)], START_S + 5.0)
    (first,) = store.changes(job.changed)
    assert first == replace(job, heard_s=START_S + 5.0, changed=first.changed)
    store.measure([Measured(job.job_id, 1)], START_S + 6.0)
    assert store.job(job.job_id) == replace(first, heard_s=START_S + 6.0)
    assert store.changes(first.changed) == []
    assert store.heard() == {f"{job.job_id}-1": START_S + 6.0}
    store.measure([Measured(job.job_id, 1, step=3)], START_S + 9.0)
    (changed,) = store.changes(first.changed)
    assert (changed.step, changed.heard_s) == (3, START_S + 9.0)
    go(store, store.job(job.job_id), State.STOPPING)
    assert store.heard() == {} and waits.attempt == 0


def test_a_driver_is_heard_also_after_the_clock_was_put_back(store: Store) -> None:
    job = go(store, submit(store), *RUN)
    for now_s in (START_S + 36_000.0, START_S, START_S + 10.0):
        store.measure([Measured(job.job_id, 1)], now_s)
        assert store.heard() == {f"{job.job_id}-1": now_s}


def test_nobody_has_heard_of_the_driver_of_a_new_attempt(store: Store) -> None:
    job = go(store, submit(store), *RUN)
    store.measure([Measured(job.job_id, 1)], START_S + 5.0)
    again = go(store, store.job(job.job_id), State.STOPPING, State.QUEUED, State.STARTING)
    assert (again.attempt, again.heard_s) == (2, None)
    store.measure([Measured(job.job_id, 1)], START_S + 6.0)
    assert store.job(job.job_id).heard_s is None


def test_a_pause_is_no_waiting(store: Store) -> None:
    job = submit(store)
    store.ask(job.job_id, PAUSE, START_S + 10.0, "anna")
    paused = store.ask(job.job_id, Change(priority=3), START_S + 20.0, "anna")
    assert (paused.waited_s, waits_s(paused, START_S + 500.0)) == (10.0, 0.0)
    goes_on = store.ask(job.job_id, GO_ON, START_S + 1000.0, "anna")
    assert waits_s(goes_on, START_S + 1005.0) == 5.0
    assert go(store, goes_on, State.STARTING, now_s=START_S + 1005.0).waited_s == 15.0


def test_a_job_that_is_cancelled_in_a_pause_has_waited_for_what_it_had(store: Store) -> None:
    job = submit(store)
    store.ask(job.job_id, PAUSE, START_S + 10.0, "anna")
    asked = store.ask(job.job_id, CANCEL, START_S + 100.0, "anna")
    assert go(store, asked, State.CANCELLED, now_s=START_S + 100.0, reason=Reason.CANCELLED).waited_s == 10.0


def test_time_before_a_job_may_start_is_no_waiting(store: Store) -> None:
    job = submit(store, not_before_s=START_S + 50.0)
    assert go(store, job, State.STARTING, now_s=START_S + 60.0).waited_s == 10.0


def test_time_before_the_last_parent_has_ended_is_no_waiting(store: Store) -> None:
    parents = store.submit([new(), new()], START_S)
    child = submit(store, after=tuple(ids(parents)))
    for job, at_s in zip(parents, (30.0, 70.0), strict=True):
        go(store, job, *RUN, State.SUCCEEDED, now_s=START_S + at_s)
    assert go(store, child, State.STARTING, now_s=START_S + 75.0).waited_s == 5.0


def test_what_was_submitted_with_a_key_can_be_asked_for(store: Store) -> None:
    key = SubmissionKey("anna", "key", "digest")
    assert store.submitted(key) is None
    jobs = store.submit([new(), new()], START_S, key)
    assert store.submitted(key) == jobs
    assert store.submitted(replace(key, scope="bert")) is None
    with pytest.raises(KeyReused):
        store.submitted(replace(key, digest="other"))


def test_facts_that_are_there_may_be_kept(store: Store) -> None:
    store.put_facts({"one": "1"}, keep=True)
    store.put_facts({"one": "2", "two": "2"}, keep=True)
    assert store.facts() == {"one": "1", "two": "2"}


def test_what_began_later_than_now_has_begun_now_once_a_clock_was_put_right(store: Store) -> None:
    ahead_s = START_S + 1e8
    runs, waits, now = go(store, submit(store), *RUN), submit(store), START_S - 500.0
    ended = go(store, submit(store), *RUN, State.SUCCEEDED)
    store.pull_back(lead(store), ahead_s)
    assert store.job(runs.job_id) == runs and store.changes(ended.changed) == []
    store.pull_back(lead(store), now)
    assert (store.job(runs.job_id).started_s, store.job(waits.job_id).waiting_since_s) == (now, now)
    assert {job.job_id for job in store.changes(ended.changed)} == {runs.job_id, waits.job_id}
    assert store.job(ended.job_id) == ended
    with pytest.raises(NotLeader):
        store.pull_back(0, now)


def test_a_newer_checkpoint_restores_the_retry_budgets_once(store: Store) -> None:
    job = go(store, submit(store), *RUN, State.STOPPING, State.QUEUED, State.STARTING, State.RUNNING)
    assert sum(job.retries.values()) == 1
    store.measure([Measured(job.job_id, 2, step=9, saved_step=8)], START_S + 5.0)
    restored = store.job(job.job_id)
    assert (restored.retries, restored.restored_at_step) == ({}, 8)
    again = go(store, restored, State.STOPPING, State.QUEUED, State.STARTING)
    store.measure([Measured(job.job_id, 3, saved_step=8)], START_S + 6.0)
    assert store.job(job.job_id).retries == again.retries != {}
