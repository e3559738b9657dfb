"""Several hosts on one machine."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _forked(forked_ray_workers: None) -> None:
    pass
