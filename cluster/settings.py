"""The only file that reads the environment. Everybody else is given values."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TorchrunWorld:
    """Where torchrun has put this process."""

    rank: int
    world_size: int
    local_rank: int


def torchrun_world() -> TorchrunWorld | None:
    """This process's place under torchrun, or None when torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return TorchrunWorld(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


def ray_address() -> str | None:
    """RAY_ADDRESS, which Ray sets for the driver of a submitted job; None where there is none."""
    return os.environ.get("RAY_ADDRESS") or None


def storage_path() -> str:
    """FLEETUNE_STORAGE_PATH, where `fleetune runs` looks when it is not told; else ./runs."""
    return os.environ.get("FLEETUNE_STORAGE_PATH") or os.path.abspath("runs")


def set_default(name: str, value: str) -> None:
    """Set a variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)
