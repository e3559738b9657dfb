"""A driver that waits for room hears a request to stop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.drivers.finetune import ray_driver
from jobs.drivers.stop_request import Stopped, StopRequest
from jobs.run.paths import JobPaths
from jobs.storage import files as storage


def test_fleetune_stop_is_heard_while_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, looks = JobPaths(str(tmp_path)), 0

    def never(spec: Any, places: Any, announce: Any, check: Any) -> None:
        nonlocal looks
        while True:
            check()
            looks += 1
            storage.write_bytes(paths.stop_request, b"")

    monkeypatch.setattr(ray_driver, "find_room", never)
    driver: Any = SimpleNamespace(announce=lambda *_, **__: None, places=None, stop=StopRequest())
    job: Any = SimpleNamespace(paths=paths, spec=None)
    nothing: Any = None
    with pytest.raises(Stopped):
        ray_driver.Training(job, driver, nothing, nothing).run()
    assert looks == 1 and driver.stop.source == "file"
