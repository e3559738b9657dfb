"""How much a store does: few statements, however many jobs, and none that goes through all jobs there ever were."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event

from orchestrator.queue.records import Measured
from orchestrator.queue.states import State
from orchestrator.queue.store import Change, Filter, SubmissionKey
from orchestrator.store.database.engine import open_database
from orchestrator.store.database.schema import METADATA
from orchestrator.store.sql_store import SqlStore
from tests.support.stores import RUN, START_S, go, lead, new, step, submit, with_tenants

KEY = SubmissionKey("anna", "key", "digest")


@contextlib.contextmanager
def told(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Statements and their parameters."""
    statements: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def watched() -> Iterator[tuple[SqlStore, Engine]]:
    database = open_database("sqlite://")
    store = SqlStore(database)
    with_tenants(store)
    yield store, database.engine
    store.close()


def test_a_submission_takes_few_statements_however_many_jobs_it_has(watched: tuple[SqlStore, Engine]) -> None:
    store, engine = watched
    for jobs, key, most in ((1, None, 4), (1, KEY, 6), (900, None, 6)):
        with told(engine) as statements:
            store.submit([new() for _ in range(jobs)], START_S, key)
        assert len(statements) <= most


def test_moves_and_measurements_take_few_statements_however_many_there_are(watched: tuple[SqlStore, Engine]) -> None:
    store, engine = watched
    epoch, jobs = lead(store), list(store.submit([new() for _ in range(900)], START_S))
    for to in (*RUN, State.STOPPING, State.QUEUED):
        with told(engine) as statements:
            jobs = store.apply_transitions(epoch, [step(job, to) for job in jobs], START_S)
        assert len(jobs) == 900
        assert len(statements) <= 5
    with told(engine) as statements:
        store.measure([Measured(job.job_id, job.attempt, step=1) for job in jobs], START_S)
    assert len(statements) <= 3


def test_pages_counts_and_changes_are_read_from_indices(watched: tuple[SqlStore, Engine]) -> None:
    store, engine = watched
    job = go(store, submit(store), *RUN)
    filters = itertools.product((None, "a"), ((), (State.QUEUED, State.FAILED)), (None, "train"))
    with told(engine) as statements:
        for which in itertools.starmap(Filter, filters):
            store.jobs(which)
            store.jobs(which, after=0)
            store.count(which)
        store.changes(0)
        store.changes(job.changed)
        store.job(job.job_id)
        store.ask(job.job_id, Change(priority=1), START_S, "anna")
        store.leases(held=True)
        store.events(job.job_id)
        store.events(before=100)
        store.events(job.job_id, before=100)
        store.followups_due()
        store.of_clients()
        store.prunable(START_S, 200)
    plans = {
        line
        for statement, parameters in statements
        if not statement.startswith("INSERT")
        for line in _plan(engine, statement, parameters)
    }
    # An index that is scanned as a whole must at least be one that holds all that is asked for, or few rows.
    few = ("COVERING INDEX", "INDEX jobs_after")
    scans = {line for line in plans if line.startswith("SCAN") and not any(index in line for index in few)}
    assert {line.split()[1] for line in scans} & set(METADATA.tables) <= {"queue"}
    for name in ("jobs_by_change (changed>?)", "jobs_unfollowed", "jobs_of_clients", "jobs_by_end (ended_s<?)"):
        assert any(name in line for line in plans), name


def _plan(engine: Engine, statement: str, parameters: Any) -> list[str]:
    with engine.connect() as connection:
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
