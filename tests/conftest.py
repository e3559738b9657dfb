"""Settings of all tests."""

import pytest
from hypothesis import settings

# Machines differ, and a slow one is no failure; numbers of examples are bounded instead.
settings.register_profile("fleetune", deadline=None, max_examples=60)
settings.load_profile("fleetune")


@pytest.fixture
def own_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow storage that only tests have, as an administrator would."""
    monkeypatch.setenv("FLEETUNE_PROTOCOLS", "memory,cut,faulty,dropping,counted")
