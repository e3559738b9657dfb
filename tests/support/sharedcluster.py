"""A Ray cluster of four slots that tenants share through a real server, and what tests do with both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.ray.backend import RayJobsBackend
from jobs.run.paths import JobPaths
from jobs.storage.journal import read_journal
from tests.support import tiny
from tests.support.hold import Hold
from tests.support.processes import wait_for
from tests.support.raycluster import RayHead
from tests.support.raynodes import left_on_ray
from tests.support.server import Server

SLOTS = 4
_ENDED = ("succeeded", "failed", "cancelled")


class Shared:
    """The cluster, its server, and what tests do with them."""

    def __init__(self, head: RayHead, folder: Path, hold: Hold) -> None:
        self.head, self.folder, self.hold = head, folder, hold
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.temp / "token")}
        (folder / "server").mkdir()
        self.queue = Server(folder / "server", (), environment)
        self._protected = ""

    def serve(self, protected_s: str) -> None:
        """Start the server with these rules; one with other rules is ended first."""
        if protected_s != self._protected:
            if self._protected:
                assert self.queue.end() == 0
            self.queue.options = ("--address", self.head.dashboard, "--protected-s", protected_s)
            self.queue.start()
            self._protected = protected_s

    def training(self, name: str, workers: int, steps: int, queue: dict[str, Any], **changes: Any) -> dict[str, Any]:
        changes = {"train__max_steps": steps, "resources__num_workers": workers, "queue": queue, **changes}
        made = tiny.spec_of(
            self.folder / "runs", self.folder / "llama", self.folder / "text.jsonl", name=name, **changes
        )
        spec: dict[str, Any] = made.model_dump(mode="json")
        return spec

    def submit(self, *specs: dict[str, Any]) -> list[str]:
        with self.queue.client() as client:
            answer = client.post("/v1/jobs", json={"specs": specs})
            assert answer.status_code == 201, answer.text
            return [job["job_id"] for job in answer.json()["jobs"]]

    def job(self, job_id: str) -> dict[str, Any]:
        with self.queue.client() as client:
            found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return found

    def events(self, job_id: str) -> list[dict[str, Any]]:
        with self.queue.client() as client:
            return list(client.get(f"/v1/jobs/{job_id}/events").json()["events"])

    def story(self, job_id: str) -> list[str]:
        return [one["message"] for one in self.events(job_id)]

    def numbers(self, job_id: str) -> dict[str, int]:
        """Return the number of the job's last event of each kind."""
        return {one["kind"]: one["number"] for one in self.events(job_id)}

    def ended(self, *job_ids: str, within_s: float = 600.0) -> None:
        def all_have() -> bool:
            return all(self.job(job_id)["state"] in _ENDED for job_id in job_ids)

        wait_for(all_have, f"{job_ids} have ended", within_s, between=rest)

    def backend(self) -> RayJobsBackend:
        return RayJobsBackend(self.head.dashboard, token=self.head.token)

    def cancelled(self, *job_ids: str) -> None:
        with self.queue.client() as client:
            for job_id in job_ids:
                client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        self.ended(*job_ids)
        assert {self.job(job_id)["state"] for job_id in job_ids} == {"cancelled"}

    def steps(self, job_id: str) -> int:
        """Return the steps in the run's metrics; the server learns of them every ten seconds."""
        run = self.job(job_id)["run"]
        return max((record["step"] for record in read_journal(JobPaths(run).metrics)), default=0) if run else 0

    def reaches(self, job_id: str, step: int) -> None:
        wait_for(lambda: self.steps(job_id) >= step, f"{job_id} has done step {step}", 600.0, rest)

    def rays_own_client(self) -> Any:
        """Return the client that `ray job` uses."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.head.dashboard, headers={"Authorization": f"Bearer {self.head.token}"})

    def nothing_is_left(self) -> None:
        """Wait until Ray has no placement group and no actor, and all its slots are free."""
        wait_for(lambda: not left_on_ray(self.head), f"nothing is left on Ray: {left_on_ray(self.head)}", 60.0, rest)

        def all_is_free() -> bool:
            (node,) = self.backend().inventory().nodes  # without leases that it knows of, all use is foreign
            return (node.cpus, node.foreign_cpus) == (SLOTS, 0)

        wait_for(all_is_free, "Ray's available resources are its total", 60.0, rest)

        def says_so() -> bool:
            with self.queue.client() as client:
                (node,) = client.get("/v1/nodes").json()["nodes"]
            return (node["cpus"], node["foreign_cpus"], node["held"]) == (SLOTS, 0, [])

        wait_for(says_so, "the server says that all is free", 60.0, rest)

    def logs(self, job_id: str) -> dict[str, str]:
        """Return the text of the job's logs by source."""
        with self.queue.client() as client:
            sources = client.get(f"/v1/jobs/{job_id}/logs").json()["sources"]
            return {source: client.get(f"/v1/jobs/{job_id}/logs/{source}").json()["text"] for source in sources}


def rest() -> None:
    """Leave the cores to what is waited for."""
    time.sleep(0.5)


def workers_of(shared: Shared, job_id: str) -> int:
    return sum(workers for _, workers in shared.job(job_id)["placement"] or ())


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files below the folder, by their names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
