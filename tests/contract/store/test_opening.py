"""Opening a store: what is made, what is refused and with which words, and how its schema comes up to date."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from cluster.errors import FleetuneError
from orchestrator.queue.errors import QueueError, StoreBroken
from orchestrator.queue.states import State
from orchestrator.store import open_store
from orchestrator.store.database.engine import SCRIPTS, migrate, open_database
from orchestrator.store.database.schema import METADATA, REVISION, VERSION_TABLE
from orchestrator.store.sql_store import SqlStore
from tests.contract.store import postgres
from tests.contract.store.processes import begin, lines, workers
from tests.support.stores import START_S, submit, with_tenants

FIRST_SCHEMA = Path(__file__).with_name("first_schema.sql")
NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{before}"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("colour", sa.Text))
    op.execute("UPDATE jobs SET colour = 'red'")
    {last}
"""


def message_of(url: str) -> str:
    with pytest.raises(FleetuneError) as caught:
        open_store(url)
    return str(caught.value)


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = with_tenants(open_store(str(tmp_path / "fleetune.db")))
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert files == {"fleetune.db": 0o600, "fleetune.db-wal": 0o600, "fleetune.db-shm": 0o600}
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["fleetune.db"]


def test_a_path_and_its_urls_are_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, url in enumerate(("x.db", "sqlite:///x.db", f"sqlite:///{tmp_path}/x.db", f"{tmp_path}/x.db"), 1):
        store = with_tenants(open_store(url))
        assert submit(store).number == number
        store.close()


def test_a_store_in_memory_is_gone_when_it_is_closed() -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        store = with_tenants(open_store(url))
        assert submit(store).number == 1
        store.close()


def test_what_cannot_be_a_store_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE songs (name TEXT)")
    other.close()
    said = {
        str(tmp_path): f"the store {tmp_path} is a directory: name a file in it, as {tmp_path}/fleetune.db",
        f"{tmp_path}/a/b": f"the store {tmp_path}/a/b cannot be made: there is no directory {tmp_path}/a",
        f"{tmp_path}/text": f"the store {tmp_path}/text is no store: the file is no SQLite database",
        f"{tmp_path}/other": f"the store {tmp_path}/other is somebody else's: it has a table 'songs'",
        "/dev/null": "the store /dev/null is no regular file",
        "": "the store has no path: name a file, as fleetune.db",
        "mysql://x": "a store is a path, sqlite:///path or postgresql://host/database, not mysql://...",
        "sqlite://x.db": "sqlite://x.db: write sqlite:///PATH, without options; with four slashes from the root",
    }
    assert {url: message_of(url) for url in said} == said
    assert not (tmp_path / "a").exists()


def test_a_damaged_file_is_an_error_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "fleetune.db"
    with_tenants(open_store(str(path))).close()
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    assert message_of(str(path)) == f"the store {path} cannot be opened now: database disk image is malformed"


def test_a_server_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = message_of(f"postgresql://anna:Sekret@127.0.0.1:{port}/queue?application_name=Sekret")
    assert said.startswith(f"the store postgresql://anna@127.0.0.1:{port}/queue cannot be read now: ")
    assert "Connection refused" in said
    assert "Sekret" not in said
    assert "\n" not in said


def test_a_database_that_a_server_does_not_have_is_named(server: str) -> None:
    with pytest.raises(StoreBroken, match=r'cannot be read now: .*database "gone" does not exist'):
        open_store(postgres.url(server, "gone"))


def test_a_server_that_is_gone_or_stuck_is_noticed_within_a_bound(empty_database: str) -> None:
    database = open_database(empty_database)
    with database.read() as connection:
        psycopgs: Any = connection.connection.dbapi_connection
        given = psycopgs.info.get_parameters()
        bounds = {"keepalives": "1", "keepalives_idle": "10", "tcp_user_timeout": "30000", "connect_timeout": "10"}
        assert {name: given[name] for name in bounds} == bounds
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "2min"
    slow = text("SET LOCAL statement_timeout = '20ms'; SELECT pg_sleep(60)")
    with (
        database.read() as connection,
        pytest.raises(StoreBroken, match="statement timeout"),
        database.explained("read"),
    ):
        connection.execute(slow)
    database.close()


def test_who_may_not_make_tables_is_told(server: str, empty_database: str) -> None:
    postgres.run(server, "CREATE ROLE guest LOGIN")
    with pytest.raises(QueueError, match=r"cannot be brought to schema .*: permission denied for schema public"):
        open_store(empty_database.replace("fleetune@", "guest@"))


def test_a_database_of_a_server_may_be_shared_with_others_unless_a_table_is_theirs(empty_database: str) -> None:
    import psycopg

    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
        open_store(empty_database).close()
        connection.execute(f"DROP TABLE {VERSION_TABLE}")
    with pytest.raises(QueueError, match="is somebody else's: it has a table 'events'"):
        open_store(empty_database)


def test_a_fresh_file_that_somebody_else_is_at_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fleetune.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    store = open_store(str(path))
    timer.join()
    assert store.tenants() == []
    store.close()
    other.close()


def test_several_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    for round_ in range(2):
        path = tmp_path / f"{round_}.db"
        with workers(3, "open", str(path)) as started:
            begin(started)
            assert lines(started) == [["closed"]] * 3
        store = with_tenants(open_store(str(path)))
        assert submit(store).number == 1
        store.close()


def test_several_processes_open_a_fresh_database_of_a_server_at_once(empty_database: str) -> None:
    with workers(3, "open", empty_database) as started:
        begin(started)
        assert lines(started) == [["closed"]] * 3


def test_migrations_make_the_tables_that_the_store_works_with(shared_url: str) -> None:
    database = open_database(shared_url)
    with database.engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []
        differences = {table.name: {index.name for index in table.indexes} for table in METADATA.sorted_tables}
    assert differences["jobs"] == {
        "jobs_by_id",
        "jobs_by_change",
        "jobs_by_state",
        "jobs_by_tenant",
        "jobs_unfollowed",
        "jobs_of_clients",
        "jobs_by_end",
        "jobs_after",
    }
    assert ScriptDirectory(str(SCRIPTS)).get_current_head() == REVISION
    database.close()


def test_a_store_of_the_first_schema_is_read(tmp_path: Path) -> None:
    path = tmp_path / "fleetune.db"
    old = sqlite3.connect(path)
    old.executescript(FIRST_SCHEMA.read_text())
    old.close()
    store = open_store(str(path))
    queued, running = store.changes(0)
    assert (running.job_id, running.state, dict(running.metrics)) == ("train-aaaaaa", State.RUNNING, {"loss": 2.5})
    assert (queued.job_id, queued.state, queued.after) == ("eval-bbbbbb", State.QUEUED, ("train-aaaaaa",))
    (lease,) = store.leases(held=True)
    assert lease.placement == running.placement
    (total,) = store.month_totals(lease.granted_s, lease.granted_s + 60.0)
    assert total.gpu_s == 60.0 * lease.gang.num_workers * lease.gang.gpus_per_worker > 0.0
    assert [event.kind for event in store.events()] == ["queued", "queued", "starting", "running"]
    assert [token.name for token in store.tokens()] == ["anna"]
    assert submit(store).number == 3
    store.close()


def scripts_with_one_more(tmp_path: Path, last: str = "") -> Path:
    scripts = tmp_path / "migrations"
    shutil.copytree(SCRIPTS, scripts)
    (scripts / "versions" / "next.py").write_text(NEXT.format(before=REVISION, last=last))
    return scripts


def test_a_schema_comes_up_to_date_with_its_rows_and_older_releases_refuse_it(shared_url: str, tmp_path: Path) -> None:
    database = open_database(shared_url)
    store = with_tenants(SqlStore(database))
    job = submit(store)
    scripts = scripts_with_one_more(tmp_path)
    for _ in range(2):
        migrate(database, scripts, "next")
    with database.read() as connection:
        assert connection.execute(text("SELECT job_id, colour FROM jobs")).all() == [(job.job_id, "red")]
    store.close()
    with pytest.raises(QueueError, match=rf"its schema is next, and .* up to {REVISION}. Upgrade Fleetune"):
        open_store(shared_url)


def test_a_migration_that_fails_leaves_everything_as_it_was(shared_url: str, tmp_path: Path) -> None:
    database = open_database(shared_url)
    scripts = scripts_with_one_more(tmp_path, 'raise OSError("the power went")')
    with pytest.raises(OSError, match="the power went"):
        migrate(database, scripts, "next")
    database.close()
    store = with_tenants(open_store(shared_url))
    assert submit(store, now_s=START_S).number == 1
    store.close()
