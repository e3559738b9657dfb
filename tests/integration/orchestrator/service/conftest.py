"""A made-up cluster, whose drivers run until they are stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.service import ServiceWorld


@pytest.fixture
def world() -> Iterator[ServiceWorld]:
    made = ServiceWorld(4, 4, secrets={"TOKEN": "hidden", "OTHER": "hidden too"})
    made.backend.script("*", runs_s=1e9)
    yield made
    made.close()
