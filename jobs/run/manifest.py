"""Collects the facts that help to repeat a run: versions of packages, git revision, host and command line."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

_PACKAGES = (
    "fleetune", "torch", "transformers", "deepspeed", "peft", "ray", "pyarrow", "fsspec", "safetensors", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of packages that affect the result; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_revision(folder: str) -> str | None:
    """Return the commit of the checkout around `folder`, with `-dirty` if files changed; None outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def run_facts() -> dict[str, Any]:
    """Return the part of a run's manifest that is known when the run starts."""
    return {
        "version": 1,
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "host": platform.node(),
        "platform": platform.platform(),
        "command": sys.argv,
        "git_revision": git_revision(os.getcwd()),
        "versions": versions(),
    }
