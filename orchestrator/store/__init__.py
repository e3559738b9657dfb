"""The store of the queue, on SQLite and PostgreSQL. Needs the group `serve`; its contract does not.

May import `queue`, `database`, `controller.fair_share`, `cluster.capacity`, `jobs.spec` and `jobs.drivers.link`. Start
with `sql_store`.
"""

from __future__ import annotations

from orchestrator.queue.errors import QueueError
from orchestrator.queue.store import Store

__all__ = ["label_of", "open_store"]


def label_of(url: str) -> str:
    """Return the name of a store for people: its path, or its URL without password and options. Raises QueueError."""
    from orchestrator.store.database.database import address_of

    return address_of(url).label.removeprefix("the store ")


def open_store(url: str) -> Store:
    """Open a store. If it does not exist, create it; bring its schema up to date.

    Args:
        url: a path, `sqlite:///path`, `sqlite://` (in memory, gone with the process), or
            `postgresql://user:password@host:port/database`.

    Raises:
        QueueError: the place is not valid, belongs to another program, was written by a newer release, or packages are
            missing.
        StoreBroken: the database does not answer at the moment.
    """
    try:
        from orchestrator.store.database.engine import open_database
        from orchestrator.store.sql_store import SqlStore

        return SqlStore(open_database(url))
    except ModuleNotFoundError as error:
        raise QueueError(f"a store needs {error.name}: pip install 'fleetune[serve]'") from error
