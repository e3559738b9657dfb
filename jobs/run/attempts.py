"""Files of a run's directory that count its worker groups and name its driver. Light to import."""

from __future__ import annotations

import contextlib
import json
import os
import secrets

from cluster.errors import RunTaken, StorageError
from jobs.run.paths import JobPaths
from jobs.storage import files as storage


def count_attempts(paths: JobPaths) -> int:
    """Count the worker groups that have started to train so far."""
    return len(storage.list_names(os.path.dirname(paths.attempt(0))))


def write_attempt(paths: JobPaths, start: int, world_size: int) -> None:
    """Add a file for this worker group. `count_attempts` counts these files."""
    number = count_attempts(paths) + 1
    storage.write_bytes(paths.attempt(number), json.dumps({"start": start, "num_workers": world_size}).encode())


def newest_start(paths: JobPaths) -> int:
    """Return the step at which the newest worker group started; 0: none has started."""
    count = count_attempts(paths)
    return int(json.loads(storage.read_bytes(paths.attempt(count)))["start"]) if count else 0


def take_run(paths: JobPaths) -> str:
    """Write a random id of this driver over that of the previous one, and return it (see `JobPaths.driver`)."""
    driver_id = secrets.token_hex(8)
    storage.write_bytes(paths.driver, driver_id.encode())
    return driver_id


def check_held(paths: JobPaths, driver_id: str) -> None:
    """Raise RunTaken if another driver has taken the run. A storage that does not answer tells nothing."""
    with contextlib.suppress(StorageError):
        if storage.read_bytes(paths.driver).decode() != driver_id:
            raise RunTaken(
                f"another driver has taken run {paths.name}, such as one that resumes it: this one ends and writes "
                "nothing more into it"
            )


def retake_run(paths: JobPaths, driver_id: str) -> str:
    """Take a run again, so that workers of an earlier start end. Raises RunTaken."""
    check_held(paths, driver_id)
    return take_run(paths)
