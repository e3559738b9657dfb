"""Migrate a database from an older schema to the newest one."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, exc, inspect, text

from orchestrator.queue.errors import QueueError
from orchestrator.store.database.database import Database
from orchestrator.store.database.schema import METADATA, REVISION, VERSION_TABLE

SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 0x666C6565  # key of an advisory lock of PostgreSQL; an arbitrary number that other programs are unlikely to use
_one_at_a_time = threading.Lock()  # alembic keeps its state in module variables


def migrate(database: Database, scripts: Path = SCRIPTS, newest: str = REVISION) -> None:
    """Bring the schema up to date in one transaction. Other processes that open the database wait for it.

    Raises:
        QueueError: a newer release has written it, or it belongs to another program.
        StoreBroken: it cannot be read or written at the moment.
    """
    try:
        with database.read() as connection:
            if _revision(connection) == newest:
                return
        with _one_at_a_time, database.write() as connection:
            _upgrade(connection, database, scripts, newest)
    except exc.ProgrammingError as error:  # for example "permission denied for schema public"
        said = " ".join(str(error.orig).split())
        raise QueueError(f"{database.address.label} cannot be brought to schema {newest}: {said}") from error


def _upgrade(connection: Connection, database: Database, scripts: Path, newest: str) -> None:
    if database.address.on_a_server:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    found = _revision(connection)
    if found == newest:
        return
    # Imported here, since alembic is slow to import and not needed if the store is up to date.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(str(scripts)).walk_revisions()}
    if found is not None and found not in known:
        raise QueueError(
            f"{database.address.label} was written by a newer release: its schema is {found}, and this release knows "
            f"schemas up to {newest}. Upgrade Fleetune"
        )
    if found is None and (others := _tables_of_others(connection, database)):
        raise QueueError(f"{database.address.label} is somebody else's: it has a table {others[0]!r}")
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    command.upgrade(config, newest)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _tables_of_others(connection: Connection, database: Database) -> list[str]:
    """Return tables of other programs.

    A SQLite file must be ours alone; on a server only our table names must be free.
    """
    names = sorted(set(inspect(connection).get_table_names()) - {VERSION_TABLE})
    return [name for name in names if name in METADATA.tables] if database.address.on_a_server else names
