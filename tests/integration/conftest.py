"""What integration tests share."""

from collections.abc import Iterator

import pytest

from tests.support.gangs import FORKED


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of its own on this machine, with more logical CPUs than the machine may have."""
    import ray

    from cluster.ray.local_start import start_local

    options = {"address": "local", "num_cpus": 4, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", FORKED)
        start_local(options | {"log_to_driver": False, "configure_logging": False})
    yield
    ray.shutdown()
