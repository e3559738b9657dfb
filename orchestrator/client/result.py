"""The result of a job, for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.errors import FleetuneError, Interrupted
from jobs.run.paths import JobPaths
from orchestrator.queue.advice import advice
from orchestrator.queue.states import Reason, State


@dataclass(frozen=True)
class Result:
    """The result of a job that has succeeded.

    Attributes:
        metrics: last known values: `loss`, `eval_loss`, ...; values that are not finite are NaN.
        paths: paths of its run's files; None for a command.
    """

    job_id: str
    name: str
    state: State
    message: str
    step: int
    metrics: Mapping[str, float]
    paths: JobPaths | None


class JobFailed(FleetuneError):
    """A job has failed.

    Attributes:
        log: end of the log that says most about the failure.
        source: name of this log.
    """

    def __init__(self, job_id: str, reason: Reason, message: str, log: str, source: str) -> None:
        self.job_id, self.reason, self.log, self.source = job_id, reason, log, source
        parts = [f"job {job_id} failed ({reason}){f': {message}' if message else ''}"]
        if log:
            parts.append(f"The end of its log ({source}):\n{log}")
        of_run = f" --source {source}" if source != "output" else ""
        parts.append(f"All of it: fleetune logs {job_id}{of_run}" if log else "")
        parts.append(f"To do: {advice(reason, job_id)}")
        super().__init__("\n".join(filter(None, parts)))


class JobCancelled(Interrupted):
    """A job was cancelled."""

    def __init__(self, job_id: str, message: str) -> None:
        self.job_id = job_id
        said = f": {message}" if message else ""
        super().__init__(f"job {job_id} was cancelled{said}. To queue it again: fleetune retry {job_id}")
