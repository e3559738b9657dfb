"""Settings of all tests."""

import collections
import os
import pathlib
import re

import pytest
from hypothesis import settings

TIMES = re.compile(r"^\| +(\d+) \| (\S+\.py) \|", re.MULTILINE)

# Of torch in this process and in all that tests start. Two threads wait for each other in every operation: where other
# processes keep the cores busy, as those of another file do, a small model then takes a hundred times as long.
os.environ["OMP_NUM_THREADS"] = "1"

# Machines differ, and a slow one is no failure; numbers of examples are bounded instead.
settings.register_profile("fleetune", deadline=None, max_examples=60)
settings.load_profile("fleetune")


@pytest.fixture
def own_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow storage that only tests have, as an administrator would."""
    monkeypatch.setenv("FLEETUNE_PROTOCOLS", "memory,cut,faulty,dropping,counted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by their seconds in the README's table, the longest first, so that both processes end together."""
    here = pathlib.Path(__file__).parent
    seconds: collections.Counter[pathlib.Path] = collections.Counter()
    for took, file in TIMES.findall((here / "README.md").read_text()):
        seconds[here / file] += int(took)
    items.sort(key=lambda item: -seconds[item.path])
