"""What threads and processes that use one store at once may expect of it."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.queue.errors import QueueError, StoreBroken
from orchestrator.queue.records import Job, QueueEvent
from orchestrator.queue.states import State
from orchestrator.queue.store import Change, Store, SubmissionKey
from orchestrator.store import open_store
from orchestrator.store.database.engine import open_database
from orchestrator.store.sql_store import SqlStore
from tests.contract.store import postgres
from tests.contract.store.processes import begin, lines, workers
from tests.support.stores import START_S, at_once, lead, new, step, submit, with_tenants


def is_whole(store: Store, jobs: Sequence[Job]) -> bool:
    """No number is missing, and every job has its spec and its event: no transaction was written by half."""
    told = {event.job_id for event in store.events(limit=100_000) if event.kind == "queued"}
    numbers = sorted(job.number for job in jobs) == list(range(1, len(jobs) + 1))
    return numbers and told == {job.job_id for job in jobs} and all(store.spec(job.job_id) for job in jobs)


def test_of_two_threads_one_moves_a_job(store: Store) -> None:
    epoch = lead(store)
    jobs = store.submit([new() for _ in range(40)], START_S)
    grants = [step(job, State.STARTING) for job in jobs]

    def grant_all() -> int:
        return sum(len(store.apply_transitions(epoch, [grant], START_S)) for grant in grants)

    assert sum(at_once(grant_all, grant_all)) == 40
    assert [lease.attempt for lease in store.leases(held=True)] == [1] * 40
    assert {store.job(job.job_id).attempt for job in jobs} == {1}


def test_of_two_processes_one_moves_a_job(shared: Store, shared_url: str) -> None:
    jobs = {job.job_id for job in shared.submit([new() for _ in range(100)], START_S)}
    with workers(2, "grant_all", shared_url) as started:
        begin(started)
        said = [job_id for some in lines(started) for job_id in some if job_id != "closed"]
    assert sorted(said) == sorted(jobs)
    assert len(shared.leases(held=True)) == 100


def test_of_two_that_want_to_lead_one_does(store: Store) -> None:
    for round_ in range(10):
        take = functools.partial(store.lead, url="", now_s=START_S + 100.0 * round_, for_s=30.0)
        led = at_once(*(functools.partial(take, name) for name in ("x", "y", "z")))
        assert sum(one is not None for one in led) == 1
        assert store.leader() in led


def test_one_key_gives_one_set_of_jobs_to_all_threads(store: Store) -> None:
    def call() -> tuple[Job, ...]:
        return store.submit([new("x"), new("y")], START_S, SubmissionKey("anna", "key", "digest"))

    assert len({job.job_id for jobs in at_once(*[call] * 6) for job in jobs}) == 2
    assert store.count() == {State.QUEUED: 2}


def test_one_key_gives_one_set_of_jobs_to_all_processes(shared: Store, shared_url: str) -> None:
    with workers(3, "submit_once", shared_url) as started:
        begin(started)
        assert len({tuple(some) for some in lines(started)}) == 1
    assert shared.count() == {State.QUEUED: 2}


def test_who_submits_beside_others_does_not_suffer_from_their_mistakes(store: Store) -> None:
    known = submit(store)
    good = [functools.partial(submit, store, f"good{number}") for number in range(6)]
    bad = [functools.partial(submit, store, "bad", **wrong) for wrong in ({"tenant": "c"}, {"after": ("gone",)}) * 2]
    keyed = functools.partial(store.submit, [new("keyed")], START_S, SubmissionKey("anna", "key", "digest"))

    def outcome(call: Callable[[], Any]) -> str:
        try:
            return str(call())
        except QueueError as error:
            return type(error).__name__

    calls: list[Callable[[], Any]] = [*good, *bad, keyed, keyed]
    outcomes = at_once(*(functools.partial(outcome, call) for call in calls))
    jobs = store.jobs()
    assert sorted(job.name for job in jobs) == [*(f"good{number}" for number in range(6)), "keyed", "train"]
    assert outcomes[:6] == [str(next(job for job in jobs if job.name == f"good{number}")) for number in range(6)]
    assert outcomes[6:10] == ["UnknownTenant", "UnknownJob"] * 2
    assert outcomes[10] == outcomes[11]
    assert is_whole(store, jobs)
    assert jobs[-1] == known


def test_a_reader_of_changes_misses_none_while_others_write(store: Store) -> None:
    seen: dict[str, Job] = {}
    events: list[QueueEvent] = []
    done = threading.Event()

    def read() -> None:
        after, last = 0, False
        while not last:
            last = done.wait(0.002)
            found = store.changes(after, limit=7)
            last = last and not found
            seen.update({job.job_id: job for job in found})
            after = found[-1].changed if found else after
            events.extend(store.events(after=events[-1].number if events else 0))

    def write(name: str) -> None:
        for priority in range(30):
            job = submit(store, name)
            store.ask(job.job_id, Change(priority=priority), START_S, "anna")

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        for writer in [pool.submit(write, name) for name in ("x", "y", "z")]:
            writer.result()
        done.set()
        reader.result()
    assert {job.job_id: job for job in store.jobs(limit=1000)} == seen
    assert len(seen) == 90
    assert len({job.changed for job in seen.values()}) == 90
    assert events == store.events(limit=1000)
    assert [event.number for event in events] == list(range(1, 181))


def test_a_reader_of_changes_misses_none_while_other_processes_write(shared: Store, shared_url: str) -> None:
    with workers(2, "submit_some", shared_url) as started:
        begin(started)
        seen: list[Job] = []
        while len(seen) < 100:
            seen += shared.changes(seen[-1].changed if seen else 0, limit=3)
        assert lines(started) == [["done", "closed"]] * 2
    assert [job.number for job in seen] == list(range(1, 101))


def test_a_writer_that_is_killed_loses_nothing_that_it_was_told_is_there(shared: Store, shared_url: str) -> None:
    told: list[str] = []
    for kept in (1, 25, 60):
        with workers(1, "submit_for_ever", shared_url) as (worker,):
            begin([worker])
            assert worker.stdout is not None
            told += " ".join(itertools.islice(worker.stdout, kept)).split()
            worker.kill()
            told += worker.stdout.read().split()
        jobs = shared.jobs(limit=100_000)
        assert set(told) <= {job.job_id for job in jobs}
        assert len(jobs) % 2 == 0
        assert is_whole(shared, jobs)
    assert submit(shared).number == len(jobs) + 1


def test_many_threads_write_and_read(store: Store) -> None:
    def work() -> None:
        for _ in range(10):
            job = submit(store)
            assert store.job(job.job_id) == job
            store.jobs(limit=5)

    at_once(*[work] * 16)
    assert is_whole(store, store.jobs(limit=1000))


def test_a_busy_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fleetune.db"
    store = with_tenants(open_store(str(path)))
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    reads = store.count()
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    assert submit(store).number == 1
    assert reads == {}
    timer.join()
    other.close()
    store.close()


def test_a_full_disk_is_an_error_that_passes(tmp_path: Path) -> None:
    path = tmp_path / "fleetune.db"
    with_tenants(open_store(str(path))).close()
    with workers(1, "fill_the_disk", str(path)) as started:
        begin(started)
        ((taken, error, counted, one_more),) = lines(started)
    assert int(taken) > 0
    assert f"the store {path} cannot be written now: " in error
    assert counted == taken
    store = open_store(str(path))
    jobs = store.jobs(limit=10_000)
    assert (jobs[0].job_id, len(jobs)) == (one_more, int(taken) + 1)
    assert is_whole(store, jobs)
    store.close()


def test_a_store_in_which_nothing_fits_any_more_still_reads(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "fleetune.db"))
    store = with_tenants(SqlStore(database))
    before = submit(store)
    with database.engine.connect() as connection:  # the pool has this one connection, and gives it to the store
        full = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {full}")
    with pytest.raises(StoreBroken, match="cannot be written now: database or disk is full"):
        store.submit([new(spec="x" * 100_000)], START_S)
    assert store.jobs() == [before]
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert submit(store).number == 2
    store.close()


def test_connections_that_a_server_has_cut_are_made_again(server: str, empty_database: str) -> None:
    store = with_tenants(open_store(empty_database))
    name = empty_database.partition("@/")[2].partition("?")[0]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    for _ in range(2):
        postgres.run(server, cut)
        assert submit(store)
    store.close()


def test_a_writer_that_is_cut_off_has_written_nothing_and_blocks_nobody(server: str, empty_database: str) -> None:
    database = open_database(empty_database)
    store = with_tenants(SqlStore(database))

    def write_while_somebody_pulls_the_plug() -> None:
        with database.write() as connection:
            connection.execute(text("UPDATE queue SET last_job = 77"))
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            postgres.run(server, f"SELECT pg_terminate_backend({pid})")
            connection.execute(text("UPDATE queue SET last_job = 78"))

    with pytest.raises(StoreBroken, match="cannot be written now: "):
        write_while_somebody_pulls_the_plug()
    assert submit(store).number == 1
    store.close()
