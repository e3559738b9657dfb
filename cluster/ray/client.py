"""Ray's client of the dashboard, with a time limit; single requests, and submissions from Ray's JobDetails."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from cluster.backend import Phase, Submission
from cluster.text import TAIL_BYTES, error_line

_OURS = "FLEETUNE_"
# Errors by which Ray reports that it has lost a job. Other errors report a job that has failed.
_LOST_TYPES = frozenset(
    f"JOB_SUPERVISOR_ACTOR_{what}"
    for what in ("START_TIMEOUT", "START_FAILURE", "UNSCHEDULABLE", "UNKNOWN_FAILURE", "DIED")
)
_LONGEST_MESSAGE = 500


def job_named(client: Any, submission: str) -> Any:
    """Return the JobDetails of a submission; None: Ray knows no such submission."""
    name = quote(submission, safe="")
    answer = client._do_request("GET", f"/api/jobs/{name}")
    if answer.status_code == 404:
        return None
    job = client.get_job_info(name)
    return job if job.submission_id == submission else None  # Ray finds jobs by its internal ids, too


def json_of(client: Any, path: str) -> Any:
    """Return the answer to a request. Raises RuntimeError: Ray reports an error."""
    answer = client._do_request("GET", path)
    if answer.status_code != 200:
        raise RuntimeError(f"status {answer.status_code} for {path}: {answer.text[:500]}")
    return answer.json()


def ray_client(dashboard: str, token: str | None, timeout_s: float) -> Any:
    """Make Ray's client, but with a time limit, and for the given address even if RAY_ADDRESS is set."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class TimelyClient(JobSubmissionClient):  # type: ignore[misc]
        def __init__(self) -> None:
            headers = {"Authorization": f"Bearer {token}"} if token else None
            # JobSubmissionClient.__init__ is skipped: it resolves the address, and may wait for a GCS that is gone.
            super(JobSubmissionClient, self).__init__(dashboard, headers=headers)

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            try:
                return super()._do_request(method, endpoint, **{"timeout": timeout_s, **options})
            except AuthenticationError as error:
                raise ConnectionError(str(error)) from error

    return TimelyClient()


def environment_like(job: Any) -> dict[str, Any]:
    """Return a job's runtime environment for another job, without the variables that name the first one's server."""
    found = dict((job.runtime_env if job is not None else None) or {})
    variables = dict(found.get("env_vars") or {})
    return {**found, "env_vars": {name: value for name, value in variables.items() if not name.startswith(_OURS)}}


def phase_of(job: Any) -> Phase:
    return Phase[job.status.value]


def submission_of(job: Any) -> Submission:
    """Make a submission from JobDetails."""
    name, phase = job.submission_id, phase_of(job)
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
