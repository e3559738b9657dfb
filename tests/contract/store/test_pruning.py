"""Old jobs are removed with all that belongs to them, never what is needed, and usage stays."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from orchestrator.queue.errors import NotLeader, UnknownJob
from orchestrator.queue.records import Job, QueueEvent
from orchestrator.queue.states import Reason, State
from orchestrator.queue.store import Store, SubmissionKey
from orchestrator.store.database.engine import open_database
from orchestrator.store.database.schema import EVENTS, JOBS, KEYS, LEASES, SPECS
from orchestrator.store.sql_store import SqlStore
from tests.support.stores import RUN, START_S, go, lead, new, step, submit, with_tenants

DAY_S = 86_400.0
LATER_S = START_S + 100 * DAY_S


def ended(store: Store, name: str = "train", at_s: float = START_S, **more: object) -> Job:
    job = go(store, submit(store, name, at_s, **more), *RUN, now_s=at_s)
    return go(store, job, State.SUCCEEDED, now_s=at_s + 3600.0)


def prune(store: Store, before_s: float = LATER_S) -> int:
    found = store.prunable(before_s, 100)
    return store.prune(lead(store, now_s=LATER_S), [job_id for job_id, _ in found], before_s)


def test_an_old_job_is_removed_with_its_attempts_and_what_it_has_used_stays_known(store: Store) -> None:
    twice = go(store, submit(store), *RUN)
    twice = go(store, twice, State.STOPPING, now_s=START_S + 1800.0, reason=Reason.PREEMPTED)
    twice = go(store, twice, State.QUEUED, *RUN, now_s=START_S + 1800.0, reason=Reason.PREEMPTED)
    twice = go(store, twice, State.SUCCEEDED, now_s=START_S + 3600.0)
    other, young = ended(store, tenant="b"), ended(store, at_s=LATER_S)
    before = store.month_totals(START_S, LATER_S)
    assert store.prunable(LATER_S, 100) == [(twice.job_id, 2), (other.job_id, 1)]
    assert prune(store) == 2
    assert [job.job_id for job in store.jobs()] == [young.job_id]
    for job in (twice, other):
        with pytest.raises(UnknownJob):
            store.job(job.job_id)
        with pytest.raises(UnknownJob):
            store.spec(job.job_id)
        assert store.events(job.job_id) == []
    assert store.month_totals(START_S, LATER_S) == before == store.month_totals(START_S, LATER_S, held=False)
    assert prune(store) == 0
    ended(store)  # and again in the same month
    assert prune(store) == 1
    assert [(total.tenant, total.jobs) for total in store.month_totals(START_S, LATER_S)] == [("a", 2), ("b", 1)]


def test_what_is_needed_is_kept(store: Store) -> None:
    parent, free = ended(store, "parent"), ended(store, "free")
    child = submit(store, "child", after=(parent.job_id,))
    told = ended(store, "told", on_end='{"webhook": "http://x"}')
    waits, runs = submit(store, "waits"), go(store, submit(store, "runs"), *RUN)
    assert [job_id for job_id, _ in store.prunable(LATER_S, 1)] == [free.job_id]
    ids = [job.job_id for job in (parent, child, told, waits, runs)]
    assert store.prune(lead(store), ids, LATER_S) == 0  # whoever asks
    store.followed(store.job(told.job_id))
    go(store, store.job(child.job_id), *RUN, State.SUCCEEDED)
    assert prune(store) == 4
    assert {job.job_id for job in store.jobs()} == {waits.job_id, runs.job_id}


def test_a_job_that_was_put_back_meanwhile_is_kept_and_an_old_leader_removes_nothing(store: Store) -> None:
    job = go(store, submit(store), *RUN, State.STOPPING, State.FAILED, reason=Reason.RUN_FAILED)
    found = [job_id for job_id, _ in store.prunable(LATER_S, 10)]
    epoch = lead(store)
    store.retry(job.job_id, START_S, "anna")
    assert found == [job.job_id] and store.prune(epoch, found, LATER_S) == 0
    lead(store, "two", now_s=LATER_S)
    with pytest.raises(NotLeader):
        store.prune(epoch, found, LATER_S)


def test_a_key_goes_with_its_first_job_and_events_of_the_cluster_with_their_age(store: Store) -> None:
    key = SubmissionKey("anna", "key", "digest")
    (job,) = store.submit([new()], START_S, key)
    store.add_events([QueueEvent(START_S, "cordon", "old"), QueueEvent(LATER_S, "cordon", "new")])
    go(store, job, *RUN, State.SUCCEEDED)
    prune(store)
    assert store.submitted(key) is None
    assert [event.message for event in store.events() if event.kind == "cordon"] == ["new"]
    assert [one.name for one in store.submit([new("again")], LATER_S, key)] == ["again"]


def test_nothing_of_a_removed_job_stays_and_its_space_is_used_again(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "queue.db"))
    with contextlib.closing(with_tenants(SqlStore(database))) as store:
        assert isinstance(store, SqlStore)
        sizes = list[int]()
        for round_ in range(4):
            jobs = store.submit(
                [new(spec="x" * 2000) for _ in range(300)], START_S, SubmissionKey("a", str(round_), "")
            )
            epoch = lead(store)
            for to in (*RUN, State.SUCCEEDED):
                jobs = tuple(store.apply_transitions(epoch, [step(job, to) for job in jobs], START_S))
            while prune(store):
                pass
            with database.read() as connection:
                sizes.append(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
                left = [
                    connection.execute(select(func.count()).select_from(table)).scalar()
                    for table in (JOBS, SPECS, LEASES, EVENTS, KEYS)
                ]
            assert left == [0] * 5
    assert sizes[-1] < 1.05 * sizes[0]


def test_a_job_that_waits_for_others_is_found_whatever_its_row_is_like(store: Store) -> None:
    parents = [ended(store, f"parent{number}") for number in range(3)]
    child = submit(store, after=tuple(job.job_id for job in parents))
    assert store.prunable(LATER_S, 10) == []
    assert replace(child, after=()) != child


def test_a_job_that_may_be_retried_keeps_those_that_it_comes_after(store: Store) -> None:
    parent = ended(store, "parent")
    child = go(store, submit(store, after=(parent.job_id,)), *RUN)
    go(store, child, State.STOPPING, State.FAILED, now_s=LATER_S, reason=Reason.RUN_FAILED)
    assert store.prunable(LATER_S, 10) == [] and store.prune(lead(store, now_s=LATER_S), [parent.job_id], LATER_S) == 0
    go(store, store.retry(child.job_id, LATER_S, "anna"), *RUN, State.SUCCEEDED, now_s=LATER_S)
    assert store.prunable(LATER_S, 10) == [(parent.job_id, 1)]
