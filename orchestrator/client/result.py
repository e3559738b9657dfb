"""How a job of the queue ended, for whoever waits for it in a script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.errors import FleetuneError, Interrupted
from jobs.run.paths import JobPaths
from orchestrator.queue.advice import advice
from orchestrator.queue.states import Reason, State


@dataclass(frozen=True)
class Result:
    """Of a job that has succeeded.

    Attributes:
        metrics: last known: `loss`, `eval_loss`, ... ; what is no number any more is nan.
        paths: what its run has left; None for a command.
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
        log: the end of the log that tells most.
        source: which log that is.
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
