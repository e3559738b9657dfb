"""Addresses of stores: from the user's text to a SQLAlchemy URL, and to a label without the password."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestrator.queue.errors import QueueError

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Address:
    """The address of a store.

    Attributes:
        label: name of the store for messages.
        file: path of the SQLite file; None: in memory, or on a database server.
    """

    url: URL
    label: str
    file: Path | None = None

    @property
    def on_a_server(self) -> bool:
        return self.url.get_backend_name() == "postgresql"


def address_of(text: str) -> Address:
    """Parse an address. Raises QueueError."""
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return _file(text)
    if scheme == "sqlite":
        return _sqlite(rest)
    if scheme in _POSTGRES:
        return _postgres(text, rest)
    raise QueueError(f"a store is a path, sqlite:///path or postgresql://host/database, not {scheme}://...")


def _sqlite(rest: str) -> Address:
    if rest in ("", "/", "/:memory:"):
        return Address(URL.create("sqlite+pysqlite"), "the store in memory")
    if not rest.startswith("/") or "?" in rest:
        raise QueueError(f"sqlite://{rest}: write sqlite:///PATH, without options; with four slashes from the root")
    return _file(rest[1:])


def _file(text: str) -> Address:
    if not text:
        raise QueueError("the store has no path: name a file, as fleetune.db")
    path = Path(text).absolute()
    return Address(URL.create("sqlite+pysqlite", database=str(path)), f"the store {path}", path)


def _postgres(text: str, rest: str) -> Address:
    # A part of the password would pass for the host, and be shown.
    if rest.partition("?")[0].count("@") > 1:
        raise QueueError("the URL of the store has more than one '@': in a user or password, write %40")
    try:
        url = make_url(text).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        form = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        raise QueueError(f"the URL of the store cannot be read: write {form}, other characters as %XX") from None
    shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    return Address(url, f"the store {shown.render_as_string()}")
