"""Where runs lie that `fleetune gc` may remove: on a disk, and in memory."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Iterator

import fsspec
import pytest


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    if request.param == "local":
        (tmp_path / "runs").mkdir()
        yield str(tmp_path / "runs")
        return
    name = uuid.uuid4().hex
    fs = fsspec.filesystem("memory")
    fs.makedirs(f"/{name}")
    yield f"memory://{name}"
    fs.rm(f"/{name}", recursive=True)
