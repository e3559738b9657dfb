"""Ray's own client of the dashboard, and single questions to it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote


def job_named(client: Any, submission: str) -> Any:
    """Ray's JobDetails; None where it knows no such submission."""
    name = quote(submission, safe="")
    answer = client._do_request("GET", f"/api/jobs/{name}")
    if answer.status_code == 404:
        return None
    job = client.get_job_info(name)
    return job if job.submission_id == submission else None  # Ray's own ids of jobs lead here, too


def json_of(client: Any, path: str) -> Any:
    answer = client._do_request("GET", path)
    if answer.status_code != 200:
        raise RuntimeError(f"status {answer.status_code} for {path}: {answer.text[:500]}")
    return answer.json()["data"]


def ray_client(dashboard: str, token: str | None, timeout_s: float) -> Any:
    """Ray's own client, with two habits less: it waits for ever, and prefers RAY_ADDRESS to the address it is given."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class TimelyClient(JobSubmissionClient):  # type: ignore[misc]
        def __init__(self) -> None:
            headers = {"Authorization": f"Bearer {token}"} if token else None
            # Not JobSubmissionClient's own, which looks for the address, and may wait for a GCS that is not there.
            super(JobSubmissionClient, self).__init__(dashboard, headers=headers)

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            try:
                return super()._do_request(method, endpoint, **{"timeout": timeout_s, **options})
            except AuthenticationError as error:
                raise ConnectionError(str(error)) from error

    return TimelyClient()
