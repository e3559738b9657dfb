"""The only file that reads the environment. What Ray reads for itself (RAY_ADDRESS, RAY_AUTH_MODE) is left to Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the surroundings say, as opposed to a spec or an option."""

    storage_path: str = "runs"  # where `fleetune runs`, `show` and `export` look when --storage is left out


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """FLEETUNE_STORAGE_PATH, or `runs` under the working directory."""
    return Settings(storage_path=environ.get("FLEETUNE_STORAGE_PATH") or "runs")
