"""What is read out of the answers of Ray's dashboard. The answers are cut out of real ones of Ray 2.60."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.backend import MAX_OUTPUT_BYTES, Phase, Submission
from cluster.capacity.inventory import Inventory, Node
from cluster.ray.client import program_end, program_output, submission_of
from cluster.ray.nodes import inventory_of, use_from_status, use_from_summary

STATUS = {
    "autoscalingError": None,
    "clusterStatus": {
        "time": 1795600045.5,
        "loadMetricsReport": {
            "usageByNode": {
                "aa": {"CPU": [2.0, 16.0], "GPU": [1.5, 8.0], "CPU_group_0_cf75": [0.0, 2.0], "memory": [0.0, 1.7e10]},
                "bb": {"CPU": [0.0, 4.0]},
            }
        },
    },
}
SUMMARY = {
    "summary": [],
    "nodeLogicalResources": {
        "aa": "1.0/16.0 CPU (0.0 used of 1.0 reserved in placement groups)\n1.5/8.0 GPU\n0B/16.04GiB memory",
        "bb": "0.0/4.0 CPU\n0B/6.87GiB object_store_memory",
    },
}
USE = {"aa": (2.0, 1.5), "bb": (0.0, 0.0)}


def node(node_id: str, state: str = "ALIVE", **total: float) -> dict[str, Any]:
    return {"node_id": node_id, "state": state, "resources_total": {"memory": 1.7e10, **total}}


def job(status: str, **fields: Any) -> Any:
    given = {"error_type": None, "message": None, "driver_exit_code": None, **fields}
    return SimpleNamespace(driver_node_id=None, submission_id="a", status=SimpleNamespace(value=status), **given)


def test_both_autoscalers_say_the_same_of_what_is_used() -> None:
    assert use_from_status(STATUS) == USE
    assert use_from_summary(SUMMARY) == USE
    assert use_from_status({"autoscalingStatus": None, "autoscalingError": None, "clusterStatus": None}) is None


def test_part_of_a_gpu_counts_whole() -> None:
    nodes = [
        node("bb", CPU=4.0),
        node("cc", "DEAD", CPU=4.0),
        node("aa", "ALIVE", CPU=16.0, GPU=8.0, **{"accelerator_type:H100": 1.0}),
    ]
    assert inventory_of(nodes, {"aa": (0.5, 0.25), "bb": (0.00005, 0.0)}) == Inventory(
        (Node("aa", 16, 8, "H100", foreign_gpus=1, foreign_cpus=1), Node("bb", 4))
    )


def test_a_node_of_which_nothing_is_known_yet_is_listed_and_not_used() -> None:
    assert inventory_of([node("new", CPU=4.0)], USE) == Inventory((Node("new", 4, usable=False),))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (job("PENDING"), Submission("a", Phase.PENDING)),
        (job("RUNNING", message="Job is currently running."), Submission("a", Phase.RUNNING)),
        (job("SUCCEEDED", driver_exit_code=0), Submission("a", Phase.SUCCEEDED, 0)),
        (job("STOPPED", message="Job was intentionally stopped."), Submission("a", Phase.STOPPED)),
        (
            job("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", driver_exit_code=3, message="failed\nlogs"),
            Submission("a", Phase.FAILED, 3),
        ),
        (
            job("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message="runtime_env setup failed: x\nmore"),
            Submission("a", Phase.FAILED, None, "runtime_env setup failed: x"),
        ),
        (
            job("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message="Job supervisor actor died: node\nmore"),
            Submission("a", Phase.LOST, None, "Job supervisor actor died: node"),
        ),
        (
            job("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_START_ERROR", message="Traceback (most ...\nOSError: x\n"),
            Submission("a", Phase.FAILED, None, "OSError: x"),
        ),
    ],
)
def test_what_ray_calls_failed_is_failed_or_lost(given: Any, said: Submission) -> None:
    assert submission_of(given) == said


RAYS_LINE = b"Running entrypoint for job a: exec x\n"
FIRST = b"2026-11-25 INFO job_manager.py:568 -- Runtime env is setting up.\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "log",
    [
        FIRST + RAYS_LINE + b"\x1e\none\ntwo\n",
        FIRST + b"\x1e\n" + RAYS_LINE + b"one\ntwo\n",
        FIRST + b"\x1e\none\n" + RAYS_LINE + b"two\n",
        b"\x1e\none\ntwo\n" + RAYS_LINE,
        b"\x1e\none\ntwo\n",  # Ray has not written its line yet
    ],
)
def test_ray_s_own_lines_are_no_output_wherever_they_stand(log: bytes, size: int) -> None:
    chunks = [log[at : at + size] for at in range(0, len(log), size)]
    for after in range(10):
        assert program_output(chunks, RAYS_LINE, after) == b"one\ntwo\n"[after:]
    for most in range(1, 10):
        assert program_end(chunks, RAYS_LINE, most) == (max(8 - most, 0), b"one\ntwo\n"[-most:])


def test_before_the_program_starts_there_is_no_output() -> None:
    assert program_output([FIRST, RAYS_LINE], RAYS_LINE, 0) == b""
    assert program_output([], RAYS_LINE, 0) == b""
    assert program_end([FIRST, RAYS_LINE], RAYS_LINE, 9) == program_end([], RAYS_LINE, 9) == (0, b"")


def test_no_more_of_a_log_is_read_than_is_wanted() -> None:
    read = iter([b"\x1e\n", *[b"x" * 1000] * 3000])
    assert program_output(read, RAYS_LINE, 5000) == b"x" * MAX_OUTPUT_BYTES
    assert len(list(read)) > 1900


def test_nodes_are_called_by_their_names_where_these_tell_them_apart() -> None:
    nodes = (Node("a1", 1, name="one"), Node("b2", 1, name="two"), Node("c3", 1, name="two"), Node("d4", 1))
    assert Inventory(nodes).labels == {"a1": "one", "b2": "b2", "c3": "c3", "d4": "d4"}
