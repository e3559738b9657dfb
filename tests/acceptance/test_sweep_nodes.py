"""A node under a sweep is lost: its trial goes on from its checkpoint, on another node's gang."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from jobs.run.checkpoints import committed_steps
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from tests.acceptance.conftest import BEGINS_WITHIN_S, FLEETUNE, environment
from tests.acceptance.test_sweep import answers_of
from tests.support import tiny
from tests.support.hold import Hold
from tests.support.processes import wait_for
from tests.support.raycluster import ray_head
from tests.support.raynodes import Nodes, left_on_ray, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, SAVED_EVERY = 16, 2


@pytest.fixture
def hold(tmp_path: pathlib.Path) -> Hold:
    """No trial gets past its fourth step: one that begins first does not end before another one has a checkpoint."""
    hold = Hold(tmp_path)
    hold.at(4)
    return hold


@pytest.fixture
def nodes(hold: Hold) -> Iterator[Nodes]:
    with (
        ray_head(num_cpus=0, **hold.environment) as head,
        ray_nodes(head, "one", "two", num_cpus=1, **hold.environment) as nodes,
    ):
        yield nodes


def test_the_trial_of_a_lost_node_goes_on_from_its_checkpoint_on_another_gang(
    nodes: Nodes, hold: Hold, tmp_path: pathlib.Path
) -> None:
    """The lost gang waits for a node that does not come back; meanwhile the other one trains every trial."""
    tiny.save_model(tmp_path / "encoder", "encoder")
    tiny.write_labelled(tmp_path / "rows.jsonl", 60, 3)
    base = {
        "model": {"path": "encoder", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.2, "seq_len": 32},
        "train": {"max_steps": STEPS, "global_batch_size": 4, "per_device_train_batch_size": 4},
        "checkpoint": {"save_steps": SAVED_EVERY},
        "resources": {"num_workers": 1, "gpus_per_worker": 0},
        "storage_path": "runs",
    }
    space = {"learning_rate": [1e-4, 1e-3, 3e-3]}
    sweep = {"kind": "sweep", "name": "moved", "base": base, "algorithm": "grid", "space": space, "then": "nothing"}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    log = tmp_path / "sweep.log"
    with open(log, "w") as file:
        driver = subprocess.Popen(
            [str(FLEETUNE), "run", str(tmp_path / "sweep.json")],
            env=environment(**nodes.environment(), **hold.environment), stdout=file, stderr=file, cwd=tmp_path,
        )  # fmt: skip
    try:

        def steps_of(trial: int) -> list[int]:
            assert driver.poll() is None, log.read_text()
            runs = list((tmp_path / "runs").glob(f"moved-2*/{trial:04d}"))
            return [record["step"] for run in runs for record in read_steps(JobPaths(str(run)))]

        def is_saved(trial: int) -> bool:
            runs = (tmp_path / "runs").glob(f"moved-2*/{trial:04d}")
            return any(committed_steps(JobPaths(str(run))) for run in runs)

        # A checkpoint is written behind the training, so a step after it proves nothing.
        wait_for(
            lambda: all(steps_of(one) and is_saved(one) for one in (1, 2)), "both have a checkpoint", BEGINS_WITHIN_S
        )
        nodes.take_away("two")
        hold.release()
        assert driver.wait(BEGINS_WITHIN_S) == 0, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    (root,) = (tmp_path / "runs").glob("moved-2*")
    answers = answers_of(root)
    assert {trial: [one["step"] for one in every] for trial, every in answers.items()} == {1: [16], 2: [16], 3: [16]}
    tokens = {trial: answer["tokens"] for trial, (answer,) in answers.items()}  # since it began on its last gang
    whole = max(tokens.values())
    (moved,) = [trial for trial in tokens if tokens[trial] < whole]
    assert tokens[moved] <= (1 - SAVED_EVERY / STEPS) * whole * 1.1, tokens
    said = log.read_text()
    assert "starting the workers of the gang again" in said and "Traceback" not in said
    wait_for(lambda: not left_on_ray(nodes.head), "nothing is left on Ray", 120.0)
