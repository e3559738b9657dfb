"""Submissions from Ray's JobDetails. Pure functions."""

from __future__ import annotations

from typing import Any

from cluster.backend import Phase, Submission
from cluster.error_line import TAIL_BYTES, error_line

_OURS = "FLEETUNE_"
PHASES = {
    "PENDING": Phase.PENDING,
    "RUNNING": Phase.RUNNING,
    "SUCCEEDED": Phase.SUCCEEDED,
    "FAILED": Phase.FAILED,
    "STOPPED": Phase.STOPPED,
}
# Errors by which Ray reports that it has lost a job. Other errors report a job that has failed.
_LOST_TYPES = frozenset(
    f"JOB_SUPERVISOR_ACTOR_{what}"
    for what in ("START_TIMEOUT", "START_FAILURE", "UNSCHEDULABLE", "UNKNOWN_FAILURE", "DIED")
)
_LONGEST_MESSAGE = 500


def environment_like(job: Any) -> dict[str, Any]:
    """Return a job's runtime environment for another job, without the variables that name the first one's server."""
    found = dict((job.runtime_env if job is not None else None) or {})
    variables = dict(found.get("env_vars") or {})
    return {**found, "env_vars": {name: value for name, value in variables.items() if not name.startswith(_OURS)}}


def submission_of(job: Any) -> Submission:
    """Make a submission from JobDetails."""
    name, phase = job.submission_id, PHASES[job.status.value]
    if phase is not Phase.FAILED:
        return Submission(name, phase, job.driver_exit_code, node_id=job.driver_node_id)
    if job.error_type in _LOST_TYPES:
        return Submission(name, Phase.LOST, message=one_line(job.message or ""))
    # If the program ran, Ray's message is the end of its output.
    text = job.message or ""
    message = error_line(text[-TAIL_BYTES:]) if job.driver_exit_code is not None else one_line(text)
    return Submission(name, phase, job.driver_exit_code, message)


def one_line(text: str) -> str:
    """Return the first line of an error, or the last line of a traceback."""
    lines = text.strip().splitlines() or [""]
    return lines[-1 if "Traceback" in text else 0][:_LONGEST_MESSAGE]
