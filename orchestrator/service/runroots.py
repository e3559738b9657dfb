"""Whether a path is where a job may write its run: the server reads there on behalf of people, and nowhere else."""

from __future__ import annotations

import os
import posixpath

from jobs import storage


def is_its_run(run: str, storage_path: str | None) -> bool:
    """Whether `run` is a directory directly under the storage_path of a job's spec."""
    if storage_path is None or "\0" in run or storage.is_local(run) != storage.is_local(storage_path):
        return False
    folder, name = posixpath.split(run.rstrip("/"))
    if name in ("", ".", "..", "prepared") or name.startswith("."):
        return False
    return _plain(folder) == _plain(storage_path)


def is_within(path: str, folder: str) -> bool:
    """Whether a local path lies under a folder, links followed."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip("/") + "/")


def _plain(path: str) -> str:
    if storage.is_local(path):
        return os.path.normpath(storage.local_path(path))
    return path.rstrip("/")
