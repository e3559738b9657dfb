"""Ray's client of the dashboard, with a time limit, and single requests."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote


def job_named(client: Any, submission: str) -> Any:
    """Return the JobDetails of a submission; None: Ray knows no such submission."""
    name = quote(submission, safe="")
    answer = client._do_request("GET", f"/api/jobs/{name}")
    if answer.status_code == 404:
        return None
    job = client.get_job_info(name)
    return job if job.submission_id == submission else None  # Ray finds jobs by its internal ids, too


def json_of(client: Any, path: str) -> Any:
    answer = client._do_request("GET", path)
    if answer.status_code != 200:
        raise RuntimeError(f"status {answer.status_code} for {path}: {answer.text[:500]}")
    return answer.json()["data"]


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
