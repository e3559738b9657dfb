"""What a worker is given."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec


@dataclass(frozen=True)
class Job:
    """One run as its workers see it; small, and can be sent to another process."""

    spec: Spec
    run_root: str
    prepared_root: str
    model: str  # as in the spec; each machine brings it to its own disk
    earlier_attempts: int = 0  # worker groups that this run had before its driver started
    driver: str = ""  # what that driver has written to `JobPaths.driver`; empty: nobody can take its place

    @property
    def paths(self) -> JobPaths:
        return JobPaths(self.run_root)
