"""What everybody may expect of a store: submission, looking up, asking, putting back."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest

from cluster.capacity.gang import Gang
from orchestrator.queue.errors import (
    JobEnded,
    KeyReused,
    NotEnded,
    QueueError,
    TooManyQueued,
    UnknownJob,
    UnknownTenant,
)
from orchestrator.queue.records import Job, NewJob
from orchestrator.queue.states import DesiredState, Reason, State
from orchestrator.queue.store import Change, Filter, Store, SubmissionKey
from orchestrator.queue.tenants import Restrictions, Tenant
from orchestrator.store import open_store
from orchestrator.store.database.engine import open_database
from orchestrator.store.sql_store import SqlStore
from tests.support.stores import RUN, START_S, at_once, go, new, submit, with_tenants

KEY = SubmissionKey("anna", "key", "digest")
NOT_KEPT = ("spec", "most_queued")  # the spec is read apart, and the bound holds for the submission only


def test_a_new_job_waits_and_is_what_was_submitted(store: Store) -> None:
    parent = submit(store)
    asked = NewJob(
        name="tune",
        kind="finetune",
        tenant="b",
        spec='{"\N{SNOWMAN}": null}',
        gang=Gang(3, 2, 8, "H100"),
        submitted_by="anna",
        priority=-7,
        after=(parent.job_id,),
        not_before_s=12.5,
        max_runtime_s=3600.0,
        preemptible=False,
    )
    (job,) = store.submit([asked], START_S)
    assert {name: getattr(job, name) for name in NewJob.__slots__ if name not in NOT_KEPT} == {
        name: getattr(asked, name) for name in NewJob.__slots__ if name not in NOT_KEPT
    }
    assert (job.state, job.reason, job.wanted) == (State.QUEUED, Reason.SUBMITTED, DesiredState.RUN)
    assert (job.submitted_s, job.waiting_since_s, job.attempt) == (START_S, START_S, 0)
    assert store.job(job.job_id) == job
    assert store.spec(job.job_id) == asked.spec


def test_ids_are_the_name_and_six_characters_that_cannot_be_mistaken(store: Store) -> None:
    jobs = store.submit([new("my-job") for _ in range(200)], START_S)
    assert all(re.fullmatch(r"my-job-[0-9a-hjkmnp-tv-z]{6}", job.job_id) for job in jobs)
    assert len({job.job_id for job in jobs}) == 200


def test_numbers_follow_the_order_of_submission(store: Store) -> None:
    first = submit(store)
    more = store.submit([new("x"), new("y")], START_S - 500.0)
    assert [job.number for job in (first, *more)] == [1, 2, 3]
    assert [job.name for job in more] == ["x", "y"]


def test_a_drawn_id_that_is_taken_is_drawn_again(url: str) -> None:
    drawn = iter(["aaaaaa", "aaaaaa", "bbbbbb", "aaaaaa", "cccccc", "cccccc", "dddddd", "eeeeee"])
    store = SqlStore(open_database(url), lambda: next(drawn))
    with_tenants(store)
    assert submit(store).job_id == "train-aaaaaa"
    assert submit(store).job_id == "train-bbbbbb"
    many = store.submit([new(), new(), new()], START_S)
    assert [job.job_id for job in many] == ["train-dddddd", "train-cccccc", "train-eeeeee"]
    assert [job.number for job in many] == [3, 4, 5]
    store.close()


@pytest.mark.parametrize("many", [1, 2])
def test_all_jobs_of_a_submission_are_taken_or_none(store: Store, many: int) -> None:
    with pytest.raises(UnknownTenant, match=r"there is no tenant 'bb'; did you mean b\?"):
        store.submit([*[new()] * (many - 1), new(tenant="bb")], START_S)
    with pytest.raises(UnknownJob, match="there is no job 'gone-000000'"):
        store.submit([*[new()] * (many - 1), new(after=("gone-000000",))], START_S)
    assert (store.count(), store.events()) == ({}, [])
    assert submit(store).number == 1


def test_nothing_submitted_is_no_mistake(store: Store) -> None:
    assert store.submit([], START_S, KEY) == ()


def test_a_key_gives_the_jobs_of_the_first_time_as_they_are_now(store: Store) -> None:
    first = store.submit([new("x"), new("y")], START_S, KEY)
    submit(store)
    changed = go(store, first[1], *RUN)
    again = store.submit([new("x"), new("y")], START_S + 60.0, KEY)
    assert again == (first[0], changed)
    assert sum(store.count().values()) == 3


def test_a_key_is_of_its_scope_and_of_one_content(store: Store) -> None:
    first = store.submit([new()], START_S, KEY)
    assert store.submit([new()], START_S, replace(KEY, scope="bert")) != first
    with pytest.raises(KeyReused, match="'key' was used for another submission"):
        store.submit([new()], START_S, replace(KEY, digest="other"))
    assert sum(store.count().values()) == 2


def test_a_key_of_a_refused_submission_may_be_used_again(store: Store) -> None:
    with pytest.raises(UnknownTenant):
        store.submit([new(tenant="c")], START_S, KEY)
    assert len(store.submit([new()], START_S, KEY)) == 1


def test_an_unknown_id_is_answered_with_those_that_were_perhaps_meant(url: str) -> None:
    drawn = iter(["aaaaaa", "bbbbbb", "k3d9x2"])
    store = SqlStore(open_database(url), lambda: next(drawn))
    with_tenants(store)
    for name in ("train", "train", "eval"):
        submit(store, name)
    for look_up in (store.job, store.spec):
        with pytest.raises(UnknownJob, match=r"there is no job 'tr': did you mean train-bbbbbb, train-aaaaaa\?"):
            look_up("tr")
    with pytest.raises(UnknownJob, match=r"there is no job 'eval-k3d9y2': did you mean eval-k3d9x2\?"):
        store.job("eval-k3d9y2")
    for wrong in ("", "x", "%", "_rain", "\U0010ffff", "zzz" * 1000):
        with pytest.raises(UnknownJob, match=r"there is no job .*'$"):
            store.job(wrong)
    store.close()


def test_pages_go_from_the_newest_to_the_oldest(store: Store) -> None:
    store.submit([new() for _ in range(25)], START_S)
    page = store.jobs(limit=10)
    assert [job.number for job in page] == list(range(25, 15, -1))
    assert [job.number for job in store.jobs(before=16, limit=10)] == list(range(15, 5, -1))
    assert [job.number for job in store.jobs(before=6)] == [5, 4, 3, 2, 1]
    assert store.jobs(before=1) == store.jobs(limit=0) == []


def test_pages_go_from_the_oldest_on(store: Store) -> None:
    store.submit([new() for _ in range(25)], START_S)
    assert [job.number for job in store.jobs(after=0, limit=10)] == list(range(1, 11))
    assert [job.number for job in store.jobs(after=10, limit=10)] == list(range(11, 21))
    assert [job.number for job in store.jobs(after=3, before=6)] == [4, 5]
    assert store.jobs(after=25) == store.jobs(after=0, limit=0) == []


def test_the_last_numbers_are_those_of_the_newest_change_and_event(store: Store) -> None:
    assert store.changes(store.last_change()) == [] and store.last_event() == 0
    *_, job = store.submit([new() for _ in range(3)], START_S)
    assert (store.last_change(), store.last_event()) == (job.changed, store.events()[-1].number)
    asked = store.ask(job.job_id, Change(priority=1), START_S, "anna")
    assert store.last_change() == asked.changed and store.last_event() == store.events()[-1].number
    assert store.changes(store.last_change()) == [] == store.events(after=store.last_event())


def test_filters_hold_together(store: Store) -> None:
    jobs = [submit(store, name, tenant=tenant) for tenant in "ab" for name in ("train", "eval", "train-x")]
    go(store, jobs[0], *RUN, State.SUCCEEDED)
    go(store, jobs[3], *RUN)
    jobs = [store.job(job.job_id) for job in jobs]
    tenants, names = (None, "a", "b", "c"), (None, "", "train", "train-x", jobs[4].job_id, "e", "%")
    states = ((), (State.QUEUED,), (State.RUNNING, State.SUCCEEDED, State.RUNNING), (State.FAILED,), tuple(State))
    for which in (Filter(tenant, some, name) for tenant in tenants for some in states for name in names):
        expected = [
            job
            for job in reversed(jobs)
            if (which.tenant is None or job.tenant == which.tenant)
            and (not which.states or job.state in which.states)
            and job.job_id.startswith(which.name or "")
        ]
        assert store.jobs(which) == expected
        assert store.jobs(which, before=4, limit=2) == [job for job in expected if job.number < 4][:2]
        assert store.jobs(which, after=2, limit=2) == [job for job in reversed(expected) if job.number > 2][:2]
        counted = {state: sum(job.state is state for job in expected) for state in State}
        assert store.count(which) == {state: jobs for state, jobs in counted.items() if jobs}


def test_what_is_asked_is_noted_with_an_event(store: Store) -> None:
    job = submit(store)
    asked = store.ask(job.job_id, Change(wanted=DesiredState.PAUSE), START_S + 1.0, "bert")
    waited = replace(job, waited_s=1.0, waiting_since_s=START_S + 1.0)
    assert asked == replace(waited, wanted=DesiredState.PAUSE, changed=asked.changed) == store.job(job.job_id)
    assert asked.changed > job.changed
    asked = store.ask(job.job_id, Change(priority=9), START_S + 2.0, "bert")
    assert (asked.wanted, asked.priority, asked.state) == (DesiredState.PAUSE, 9, State.QUEUED)
    _, *events = store.events(job.job_id)
    assert [(event.at_s, event.kind, event.message) for event in events] == [
        (START_S + 1.0, "asked", "bert asks: pause"),
        (START_S + 2.0, "asked", "bert asks: priority 9"),
    ]
    assert events[1].data == {"by": "bert", "priority": 9}


def test_it_is_too_late_to_ask_anything_of_a_job_that_has_ended(store: Store) -> None:
    job = go(store, submit(store), *RUN, State.SUCCEEDED)
    with pytest.raises(JobEnded, match="has succeeded: it is too late for that"):
        store.ask(job.job_id, Change(wanted=DesiredState.CANCEL), START_S, "bert")
    with pytest.raises(UnknownJob):
        store.ask("gone", Change(priority=1), START_S, "bert")
    assert store.job(job.job_id) == job


@pytest.mark.parametrize("wanted", [DesiredState.RUN, DesiredState.PAUSE])
def test_a_cancelled_job_that_is_stopping_cannot_go_on(store: Store, wanted: DesiredState) -> None:
    job = go(store, submit(store), *RUN, State.STOPPING, reason=Reason.CANCELLED)
    with pytest.raises(JobEnded, match="is ending, because it was cancelled: retry it once it has ended"):
        store.ask(job.job_id, Change(wanted=wanted), START_S, "bert")
    assert store.job(job.job_id) == job
    assert store.ask(job.job_id, Change(wanted=DesiredState.CANCEL, priority=3), START_S, "bert").priority == 3
    preempted = go(store, submit(store), *RUN, State.STOPPING, reason=Reason.PREEMPTED)
    assert store.ask(preempted.job_id, Change(wanted=wanted), START_S, "bert").wanted is wanted


def test_a_job_is_put_back_with_fresh_budgets(store: Store) -> None:
    job = go(store, submit(store), *RUN, State.STOPPING, State.QUEUED, reason=Reason.NODE_LOST)
    job = go(store, job, *RUN, State.STOPPING, State.FAILED, reason=Reason.RUN_FAILED, now_s=START_S + 10.0)
    assert job.retries == {Reason.NODE_LOST: 1}
    back = store.retry(job.job_id, START_S + 60.0, "bert")
    assert back == store.job(job.job_id)
    assert (back.state, back.reason, back.wanted, back.retries) == (State.QUEUED, Reason.RETRIED, DesiredState.RUN, {})
    assert (back.waiting_since_s, back.ended_s, back.attempt) == (START_S + 60.0, None, 2)
    last = store.events(job.job_id)[-1]
    assert (last.kind, last.message, last.at_s) == ("queued", "retried by bert", START_S + 60.0)
    assert go(store, back, *RUN).attempt == 3


def test_only_what_has_failed_or_was_cancelled_is_put_back(store: Store) -> None:
    job = submit(store)
    with pytest.raises(NotEnded, match="has not ended: it is queued"):
        store.retry(job.job_id, START_S, "bert")
    go(store, job, *RUN, State.SUCCEEDED)
    with pytest.raises(JobEnded, match="has succeeded"):
        store.retry(job.job_id, START_S, "bert")
    with pytest.raises(UnknownJob):
        store.retry("gone", START_S, "bert")
    store.ask(submit(store).job_id, Change(wanted=DesiredState.CANCEL), START_S, "bert")
    cancelled = go(store, store.jobs(limit=1)[0], State.CANCELLED, reason=Reason.CANCELLED)
    assert store.retry(cancelled.job_id, START_S, "bert").wanted is DesiredState.RUN


def test_a_job_that_is_put_back_waits_from_then_on(store: Store) -> None:
    """Otherwise it would go before every priority for what it had waited before it failed."""
    later_s = START_S + 8 * 86_400
    failed = go(store, submit(store), *RUN, State.STOPPING, State.FAILED, now_s=later_s, reason=Reason.RUN_FAILED)
    assert failed.waited_s == 8 * 86_400
    again = store.retry(failed.job_id, later_s, "bert")
    assert (again.waited_s, again.interruptions, again.waiting_since_s) == (0.0, 0, later_s)


def test_retries_at_once_do_not_pass_the_limit_of_the_tenant_together(store: Store) -> None:
    failed = [go(store, submit(store), *RUN, State.STOPPING, State.FAILED, reason=Reason.RUN_FAILED) for _ in range(6)]
    store.put_tenant(Tenant("a", restrictions=Restrictions(max_queued_jobs=2)), START_S)

    def retried(job: Job) -> bool:
        try:
            return store.retry(job.job_id, START_S, "bert").state is State.QUEUED
        except TooManyQueued:
            return False

    assert sum(at_once(*(partial(retried, job) for job in failed))) == 2
    assert store.count(Filter("a", (State.QUEUED,))) == {State.QUEUED: 2}


def test_what_no_database_holds_is_refused_and_nothing_is_written(store: Store) -> None:
    for wrong in (new(priority=2**70), new(submitted_by="\udcff")):
        with pytest.raises(QueueError, match="cannot hold this"):
            store.submit([wrong], START_S)
    assert store.count() == {}


def test_a_job_may_start_after_a_thousand_others(store: Store) -> None:
    """Their ids have no common part that a database could compress."""
    parents = tuple(job.job_id for job in store.submit([new()] * 1000, START_S))
    (job,) = store.submit([new(after=parents)], START_S)
    assert store.job(job.job_id).after == parents


def test_what_was_written_is_there_after_the_store_was_closed(shared_url: str) -> None:
    store = open_store(shared_url)
    job = go(with_tenants(store), submit(store), *RUN)
    events = store.events()
    store.close()
    store = open_store(shared_url)
    assert (store.job(job.job_id), store.events()) == (job, events)
    assert store.spec(job.job_id) == new().spec
    store.close()
