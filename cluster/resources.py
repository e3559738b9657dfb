"""What a gang asks for. Values only."""

from __future__ import annotations

from dataclasses import dataclass


def workers(number: int) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} worker" if number == 1 else f"{number} workers"


@dataclass(frozen=True)
class Gang:
    """Workers that start together or not at all."""

    num_workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    accelerator_type: str | None = None

    def __str__(self) -> str:
        each = f"{self.cpus_per_worker} CPU"
        if self.gpus_per_worker:
            each += f" and {self.gpus_per_worker} {self.accelerator_type or ''} GPU".replace("  ", " ")
        return f"{workers(self.num_workers)} of {each}"
