"""Settings of all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

# Machines differ, and a slow one is no failure; numbers of examples are bounded instead.
settings.register_profile("fleetune", deadline=None, max_examples=60)
settings.load_profile("fleetune")

_CLUSTER = Path(__file__).parent / "cluster"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What one test process runs without another beside it: a file, whose tests share what it sets up.

    Tests of `cluster/` wait most of their time. All of them are one process's, and come first: beside each other they
    would leave the processors idle, and what comes after them would not.
    """
    items.sort(key=lambda item: not item.path.is_relative_to(_CLUSTER))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("cluster" if item.path.is_relative_to(_CLUSTER) else str(item.path)))


@pytest.fixture
def own_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow storage that only tests have, as an administrator would."""
    monkeypatch.setenv("FLEETUNE_PROTOCOLS", "memory,cut,faulty,dropping,counted")
