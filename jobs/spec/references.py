"""References to runs: `model.path: run:NAME` means the model that the run NAME has exported. Pure."""

from __future__ import annotations

import re
from typing import Final

RUN_REFERENCE: Final = re.compile(r"run:([A-Za-z0-9_][A-Za-z0-9._-]*)\Z")


def run_named(path: str) -> str | None:
    """Return NAME of `run:NAME`; None for every other path, which is a directory, a URL or a hub id."""
    match = RUN_REFERENCE.match(path)
    return match[1] if match else None
