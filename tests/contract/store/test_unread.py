"""One row that cannot be read hides no other: in lists, pages, changes and moves."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.http.auth import NoToken, Tokens
from orchestrator.http.routes.logs import Ownership
from orchestrator.queue.errors import UnknownJob, UnreadableJob
from orchestrator.queue.records import Role, UnreadableRow
from orchestrator.queue.states import State
from orchestrator.queue.store import Store
from orchestrator.service import tokens as tokenrules
from orchestrator.service.admission.parents import Parents
from orchestrator.service.context.caller import Caller
from orchestrator.store import open_store
from orchestrator.store.database.unreadable import Unread
from tests.support.stores import RUN, START_S, go, lead, new, step, submit, with_tenants


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(str(path))) as opened:
        yield with_tenants(opened)


def spoil(path: Path, table: str, column: str, value: object, where: str = "1 = 1") -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(f'UPDATE {table} SET "{column}" = ? WHERE {where}', (value,))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("reason", "of-a-newer-release"),
        ("state", "of-a-newer-release"),
        ("wanted", "of-a-newer-release"),
        ("metrics", "{"),
        ("metrics", "[1]"),
        ("placement", "[1]"),
        ("after", "{"),
        ("retries", '{"of-a-newer-release": 1}'),
        ("sizes", '["x"]'),
        ("labels", "["),
        ("not_before_s", "soon"),
        ("cpus_per_worker", 2**31),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_and_named(store: Store, path: Path, column: str, value: object) -> None:
    first, bad, last = (submit(store, name) for name in ("first", "bad", "last"))
    spoil(path, "jobs", column, value, f"number = {bad.number}")
    assert [job.job_id for job in store.jobs()] == [last.job_id, first.job_id]
    assert [job.job_id for job in store.changes(0)] == [first.job_id, last.job_id]
    assert [job.job_id for job in store.changes(first.changed)] == [last.job_id]
    assert store.find([bad.job_id, last.job_id]) == {last.job_id: last}
    assert store.count()[State.QUEUED] >= 2
    with pytest.raises(UnreadableJob, match=f"job {bad.job_id} cannot be read: .*upgrade"):
        store.job(bad.job_id)
    moved = store.apply_transitions(lead(store), [step(one, State.STARTING) for one in (bad, last)], START_S)
    assert [job.job_id for job in moved] == [last.job_id]
    (row,) = store.unreadable()
    assert (row.table, row.name, row.tenant) == ("job", bad.job_id, "a") and row.problem
    spoil(path, "jobs", column, None if value is None else _good(column), f"number = {bad.number}")
    assert len(store.jobs()) == 3 and store.unreadable() == []


def _good(column: str) -> object:
    return {"reason": "submitted", "state": "queued", "wanted": "run", "cpus_per_worker": 4, "not_before_s": None}.get(
        column, ""
    )


def test_a_page_is_full_also_where_rows_in_it_cannot_be_read(store: Store, path: Path) -> None:
    jobs = store.submit([new() for _ in range(10)], START_S)
    spoil(path, "jobs", "metrics", "{", "number BETWEEN 4 AND 9")
    page = store.jobs(limit=2)
    assert [job.number for job in page] == [10, 3]
    assert [job.number for job in store.jobs(before=3, limit=2)] == [2, 1]
    assert [job.number for job in store.changes(jobs[3].changed - 1, limit=2)] == [10]


def test_a_tenant_a_token_a_lease_and_an_event_that_cannot_be_read_stop_nobody(store: Store, path: Path) -> None:
    job = go(store, submit(store), *RUN)
    other = go(store, submit(store, tenant="b"), *RUN)
    spoil(path, "tenants", "limit", "{", "name = 'a'")
    spoil(path, "tenants", "restrictions", '{"of_a_newer_release": 1}', "name = 'b'")
    spoil(path, "leases", "placement", "{", f"job = {job.number}")
    spoil(path, "events", "data", "{", f"job_id = '{job.job_id}'")
    assert [(one.name, one.limit) for one in store.tenants()] == [("a", ((None, 0),)), ("b", ())]
    assert [one.restrictions.roots for one in store.tenants()] == [(), None]  # it may have been limited to some
    assert [lease.job_id for lease in store.leases(held=True)] == [other.job_id]
    assert [event.kind for event in store.events(job.job_id)] == ["queued", "starting", "running"]
    assert {row.table for row in store.unreadable()} == {"tenant", "lease"}
    spoil(path, "tenants", "limit", "", "name = 'a'")
    assert store.tenants() and {row.table for row in store.unreadable()} == {"lease"}


def test_a_token_that_cannot_be_read_opens_the_server_to_nobody(store: Store, path: Path) -> None:
    root = tokenrules.add(store, "root", Role.ADMIN, None, START_S, "anna")
    spoil(path, "tokens", "role", "of-a-newer-release")
    tokens = Tokens(store)
    tokens.read()
    assert tokens.needed
    with pytest.raises(NoToken, match="this server needs a token, and cannot read the tokens that it has"):
        tokens.caller(None)
    with pytest.raises(NoToken):
        tokens.caller(root)
    spoil(path, "tokens", "role", "admin")
    tokens.forget()
    tokens.read()
    assert tokens.caller(root).name == "root"


def test_many_jobs_that_cannot_be_read_hide_no_token() -> None:
    unread = Unread()
    for number in range(10_001):
        unread.note(UnreadableRow("job", f"train-{number}", "a", "damaged"))
    unread.note(UnreadableRow("token", "root", None, "damaged"))
    assert len(unread.rows()) == 10_001 and unread.rows()[-1].table == "token"


def test_a_new_leader_begins_where_a_row_from_a_clock_ahead_cannot_be_read(store: Store, path: Path) -> None:
    bad, good = submit(store, "bad", START_S + 60.0), submit(store, "good", START_S + 60.0)
    spoil(path, "jobs", "retries", '{"of-a-newer-release": 1}', f"number = {bad.number}")
    store.pull_back(lead(store), START_S)
    assert store.job(good.job_id).waiting_since_s == START_S
    assert [row.name for row in store.unreadable()] == [bad.job_id]


def test_a_job_that_cannot_be_read_is_its_own_tenants_alone(store: Store, path: Path) -> None:
    bad = submit(store, "bad")
    spoil(path, "jobs", "reason", "of-a-newer-release", f"number = {bad.number}")
    owners = Ownership(store)
    sees = [owners.sees(Caller("anna", Role.MEMBER, tenant), bad.job_id) for tenant in ("a", "b")]
    assert sees == [True, False]  # and no list of events ends there
    with pytest.raises(UnknownJob, match="there is no job"):
        Parents(store, Caller("bert", Role.MEMBER, "b"), frozenset()).find(bad.job_id, "queue.after", "child")
    with pytest.raises(UnreadableJob, match=f"job {bad.job_id} cannot be read"):
        Parents(store, Caller("anna", Role.MEMBER, "a"), frozenset()).find(bad.job_id, "queue.after", "child")
