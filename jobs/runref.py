"""`model.path: run:NAME`: the model that another run has exported, under the same storage_path."""

from __future__ import annotations

from typing import Final

_PREFIX: Final = "run:"


def is_run_reference(path: str) -> bool:
    """Whether a model's path names a run. It is neither a directory nor a URL."""
    return path.startswith(_PREFIX) and "://" not in path
