"""Files of a run's directory that count its worker groups and name its driver. Light to import."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

from cluster.errors import RunTaken, StorageError
from jobs.run.paths import JobPaths
from jobs.storage import files as storage


def count_attempts(paths: JobPaths) -> int:
    """Count the worker groups that have started to train so far."""
    return len(storage.list_names(os.path.dirname(paths.attempt(0))))


def write_attempt(
    paths: JobPaths, start: int, world_size: int, passed_over: Mapping[str, str | None] | None = None
) -> None:
    """Add a file for this worker group. `count_attempts` counts these files.

    Args:
        passed_over: see `jobs.run.checkpoints.passed_over`.
    """
    number = count_attempts(paths) + 1
    content = {"start": start, "num_workers": world_size, "passed_over": dict(passed_over or {})}
    storage.write_bytes(paths.attempt(number), json.dumps(content).encode())


def newest_attempt(paths: JobPaths) -> dict[str, Any]:
    """Return the content of the newest worker group's file; empty: none has started. Raises StorageError."""
    count = count_attempts(paths)
    return dict(json.loads(storage.read_bytes(paths.attempt(count)))) if count else {}


def newest_start(paths: JobPaths) -> int:
    """Return the step at which the newest worker group started; 0: none has started."""
    return int(newest_attempt(paths).get("start", 0))


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
