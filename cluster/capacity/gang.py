"""A gang: the workers of a job and what each needs. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.text import many

# Upper bounds of a gang. Products and sums over a cluster stay far below 2**31, so that the 32-bit arrays in
# `occupancy` cannot overflow.
MOST_WORKERS: Final = 65_536
MOST_CPUS_PER_WORKER: Final = 65_536
MOST_GPUS_PER_WORKER: Final = 1024
MOST_OF_A_GANG: Final = 1 << 24  # CPUs of all workers together, and GPUs of all workers together


@dataclass(frozen=True)
class Gang:
    """Workers that start together or not at all. `accelerator_type` is None without GPUs, whatever was given."""

    num_workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    accelerator_type: str | None = None

    def __post_init__(self) -> None:
        if self.accelerator_type is not None and not self.gpus_per_worker:
            object.__setattr__(self, "accelerator_type", None)

    def check_size(self) -> None:
        """Raise ValueError if a number is out of bounds, so that no plan can be made with it."""
        for what, each, most in (
            ("cpus_per_worker", self.cpus_per_worker, MOST_CPUS_PER_WORKER),
            ("gpus_per_worker", self.gpus_per_worker, MOST_GPUS_PER_WORKER),
        ):
            if not 0 <= each <= most:
                raise ValueError(f"{what} must be from 0 to {most:,}, but is {each}")
            if each * self.num_workers > MOST_OF_A_GANG:
                raise ValueError(
                    f"num_workers ({self.num_workers}) x {what} ({each}) must be at most {MOST_OF_A_GANG:,}"
                )
        if not 1 <= self.num_workers <= MOST_WORKERS:
            raise ValueError(f"num_workers must be from 1 to {MOST_WORKERS:,}, but is {self.num_workers}")
        if not (self.cpus_per_worker or self.gpus_per_worker):
            raise ValueError("a worker needs a CPU or a GPU")

    def __str__(self) -> str:
        each = f"{self.cpus_per_worker} CPU"
        if self.gpus_per_worker:
            each += f" and {self.gpus_per_worker} {self.accelerator_type or ''} GPU".replace("  ", " ")
        return f"{many(self.num_workers, 'worker')} of {each}"
