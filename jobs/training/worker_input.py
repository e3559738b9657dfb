"""The input of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec


@dataclass(frozen=True)
class Job:
    """One run, as its workers see it. Small, and can be pickled."""

    spec: Spec
    run_root: str
    prepared_root: str
    model: str  # path as in the spec; each machine copies the model to its own disk
    earlier_attempts: int = 0  # worker groups of this run before its driver started
    driver: str = ""  # the driver's id in `JobPaths.driver`; empty if no other driver can take the run
    supports_checkpointing: bool = True  # gradient checkpointing, as far as the model's config.json tells

    @property
    def paths(self) -> JobPaths:
        return JobPaths(self.run_root)
