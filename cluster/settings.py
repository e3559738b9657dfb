"""The only file that reads the environment. Everybody else is given values."""

from __future__ import annotations

import os
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Settings:
    """What the surroundings say, as opposed to a spec or an option."""

    storage_path: str = "runs"  # where `fleetune runs`, `show` and `export` look when --storage is left out


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """FLEETUNE_STORAGE_PATH, or `runs` under the working directory."""
    return Settings(storage_path=environ.get("FLEETUNE_STORAGE_PATH") or "runs")


def set_default(name: str, value: str) -> None:
    """Set a variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)


def with_environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and more: what a program of this machine is started with."""
    return {**os.environ, **added}
