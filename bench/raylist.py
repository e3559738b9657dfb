"""What old attempts in Ray's list of jobs cost a pass: requests, rows that are read, and milliseconds.

    python -m bench.raylist [--attempts 20000] [--starts 50]

The dashboard is made up and answers at once. Lines for people go to stderr, one JSON object for each pass to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from types import SimpleNamespace
from typing import Any

from cluster.backend import Launch
from cluster.ray.backend import FENCE_KEY, KIND_KEY, PROGRAM, QUEUE_KEY, RayJobsBackend

PASSES = 4


class Dashboard:
    """Ray's client, with the entries in a dictionary. Counts what it is asked."""

    def __init__(self, attempts: int) -> None:
        self.jobs: dict[str, Any] = {}
        self.requests = self.rows = 0
        metadata = {KIND_KEY: PROGRAM, QUEUE_KEY: "", FENCE_KEY: "1"}
        for number in range(attempts):
            self._add(f"old-{number}-1", "SUCCEEDED", metadata, time.time() - 86_400.0)

    def list_jobs(self) -> list[Any]:
        self.requests += 1
        self.rows += len(self.jobs)
        return list(self.jobs.values())

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], **_: Any) -> None:
        self.requests += 1
        self._add(submission_id, "RUNNING", metadata, None)

    def delete_job(self, name: str) -> None:
        self.requests += 1
        del self.jobs[name]

    def get_job_info(self, name: str) -> Any:
        self.requests += 1
        self.rows += 1
        return self.jobs[name]

    def _do_request(self, method: str, endpoint: str, **_: Any) -> Any:
        self.requests += 1
        return SimpleNamespace(status_code=200 if endpoint.removeprefix("/api/jobs/") in self.jobs else 404)

    def _add(self, name: str, status: str, metadata: dict[str, str], ended_s: float | None) -> None:
        self.jobs[name] = SimpleNamespace(
            submission_id=name,
            status=SimpleNamespace(value=status),
            metadata=metadata,
            end_time=None if ended_s is None else int(ended_s * 1000),
            driver_exit_code=0,
            message="",
            error_type=None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=20_000, help="that are over, in Ray's list")
    parser.add_argument("--starts", type=int, default=50, help="in one pass")
    options = parser.parse_args()
    dashboard = Dashboard(options.attempts)
    backend = RayJobsBackend("http://nowhere:1")
    backend._connected = dashboard
    backend.fence(2)
    for number in range(PASSES):
        dashboard.requests, dashboard.rows, listed = 0, 0, len(dashboard.jobs)
        began = time.perf_counter()
        over = [one.submission for one in backend.submissions() if one.ended]
        for start in range(options.starts):
            backend.start(Launch(f"new-{number}-{start}-1", ("true",)), 2)
        started_s = time.perf_counter() - began
        backend.forget(over)
        result = {"result": "pass", "number": number + 1, "listed": listed, "starts": options.starts}
        result |= {"requests": dashboard.requests, "rows_read": dashboard.rows, "pass_ms": round(1000 * started_s, 1)}
        result["and_forgetting_ms"] = round(1000 * (time.perf_counter() - began - started_s), 1)
        print(", ".join(f"{name} {value}" for name, value in result.items()), file=sys.stderr, flush=True)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
