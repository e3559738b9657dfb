"""A server beside a real Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.support.raycluster import ray_head
from tests.support.server import Server, spec


@pytest.mark.slow
def test_a_command_runs_on_ray_from_submission_to_its_log(tmp_path: Path) -> None:
    with ray_head(num_cpus=4) as head:
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.temp / "token")}
        found = Server(tmp_path, ("--address", head.dashboard), environment)
        found.start()
        try:
            assert f"Ray at {head.dashboard}: 1 node, 4 CPUs, 0 GPUs" in found.log
            with found.client() as client:
                one = spec("greet", command=["sh", "-c", "echo hello from ray"])
                one["resources"] = {"num_workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1}
                answer = client.post("/v1/jobs", json={"specs": [one]})
                assert answer.status_code == 201, answer.text
                job_id = answer.json()["jobs"][0]["job_id"]

                def state() -> str:
                    return str(client.get(f"/v1/jobs/{job_id}").json()["state"])

                wait_for(lambda: state() in ("succeeded", "failed"), "it has ended", within_s=180.0)
                sources = client.get(f"/v1/jobs/{job_id}/logs").json()["sources"]
                logs = {source: client.get(f"/v1/jobs/{job_id}/logs/{source}").json()["text"] for source in sources}
                assert state() == "succeeded", (client.get(f"/v1/jobs/{job_id}").text, logs)
                assert "hello from ray" in str(logs)

                def free() -> bool:
                    (node,) = client.get("/v1/nodes").json()["nodes"]
                    return (node["cpus"], node["foreign_cpus"], node["held"]) == (4, 0, [])

                wait_for(free, "Ray says that all is free again")  # it is some seconds late
            assert found.end() == 0
            assert "Traceback" not in found.log
        finally:
            if found.process is not None and found.process.poll() is None:
                found.kill()
