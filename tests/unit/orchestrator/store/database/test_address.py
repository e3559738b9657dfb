"""Where a store is said to be, that no message shows a password, and what is said where packages are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.queue.errors import QueueError
from orchestrator.store.database.database import address_of


def test_a_path_becomes_absolute() -> None:
    assert address_of("queue.db").file == Path.cwd() / "queue.db"
    assert address_of("sqlite:////srv/queue.db").file == Path("/srv/queue.db")
    assert address_of("sqlite://").file is None


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_way_to_write_postgresql_leads_to_psycopg(scheme: str) -> None:
    address = address_of(f"{scheme}://anna:Sekret%40@db:5433/queue?sslmode=require&password=Sekret")
    assert address.url.drivername == "postgresql+psycopg"
    assert (address.url.password, address.url.query["sslmode"]) == ("Sekret@", "require")
    assert address.label == "the store postgresql://anna@db:5433/queue"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anna:Se@kret@db/queue",
        "postgresql://anna:Sekret@db:port/queue",
        "postgresql://anna:Sekret@db:port@x/queue",
        "oracle://anna:Sekret@db/queue",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(QueueError) as caught:
        address_of(url)
    assert "kret" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "url", "group"),
    [
        ("sqlalchemy", "sqlite://", "a store needs sqlalchemy: pip install 'fleetune[serve]'"),
        ("alembic", "sqlite://", "a store needs alembic: pip install 'fleetune[serve]'"),
        ("psycopg", "postgresql://db/queue", "a store on PostgreSQL needs psycopg: pip install 'fleetune[postgres]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_group(missing: str, url: str, group: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None  # as if it was not installed
from orchestrator.queue.errors import QueueError
from orchestrator.store import open_store
try:
    open_store({url!r})
except QueueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == group
