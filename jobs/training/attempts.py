"""What a run's directory says of its worker groups, and of the driver that has it. Light to import."""

from __future__ import annotations

import json
import os
import secrets

from jobs import storage
from jobs.paths import JobPaths


def count_attempts(paths: JobPaths) -> int:
    """Worker groups that have begun to train so far."""
    return len(storage.list_names(os.path.dirname(paths.attempt(0))))


def write_attempt(paths: JobPaths, start: int, world_size: int) -> None:
    """Leave a note of this worker group, by which groups are counted."""
    number = count_attempts(paths) + 1
    storage.write_bytes(paths.attempt(number), json.dumps({"start": start, "num_workers": world_size}).encode())


def take_run(paths: JobPaths) -> str:
    """A new driver's word, in place of that of the driver before (see `JobPaths.driver`)."""
    word = secrets.token_hex(8)
    storage.write_bytes(paths.driver, word.encode())
    return word
