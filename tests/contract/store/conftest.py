"""Every kind of store that there is. PostgreSQL is skipped where none is installed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.queue.store import Store
from orchestrator.store import open_store
from tests.contract.store import postgres
from tests.support.stores import with_tenants

_names = (f"test{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The folder of a PostgreSQL server with a database `model` of the newest schema."""
    bin_dir = postgres.binaries()
    if bin_dir is None:
        pytest.skip("no PostgreSQL server is installed")
    with postgres.server(bin_dir) as folder:
        postgres.run(folder, "CREATE DATABASE model")
        open_store(postgres.url(folder, "model")).close()
        yield folder


def _url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind != "postgresql":
        return "sqlite://" if kind == "memory" else f"sqlite:///{tmp_path}/fleetune.db"
    folder, name = request.getfixturevalue("server"), next(_names)
    postgres.run(folder, f"CREATE DATABASE {name} TEMPLATE model")
    return postgres.url(folder, name)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return _url(request.param, request, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that several processes may open."""
    return _url(request.param, request, tmp_path)


@pytest.fixture
def empty_database(server: str) -> str:
    """URL of one of PostgreSQL in which nothing has been made."""
    name = next(_names)
    postgres.run(server, f"CREATE DATABASE {name}")
    return postgres.url(server, name)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """With tenants a and b."""
    opened = open_store(url)
    yield with_tenants(opened)
    opened.close()


@pytest.fixture
def shared(shared_url: str) -> Iterator[Store]:
    """The store at `shared_url`, with tenants a and b."""
    opened = open_store(shared_url)
    yield with_tenants(opened)
    opened.close()
