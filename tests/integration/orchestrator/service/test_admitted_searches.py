"""How sweeps and comparisons are let into the queue, and what their drivers are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CapacityError
from jobs.drivers.link.messages import Register
from orchestrator.service.admission.shared_paths import NotReadable
from orchestrator.service.drivers import register
from tests.integration.orchestrator.service.test_admission import refused
from tests.support.service import ServiceWorld, finetune, queue, sweep


@pytest.fixture
def world() -> Iterator[ServiceWorld]:
    made = ServiceWorld(4, 4)
    yield made
    made.close()


def test_a_sweep_is_an_elastic_job_of_whole_gangs(world: ServiceWorld) -> None:
    gang = {"num_workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 1}
    base = {**sweep()["base"], "resources": gang, **queue(priority=-7)}
    (job,) = world.admit(sweep(base, num_gangs=3))
    assert (job.kind, str(job.gang), job.sizes) == ("sweep", "2 workers of 1 CPU and 1 GPU", (2, 4, 6))
    assert job.preemptible and job.priority == -7, "what it asks of the queue is what its base asks"
    (few,) = world.admit(sweep(base, algorithm="random", budget={"trials": 1}, **queue(priority=-1)))
    assert few.sizes == () and few.priority == -1
    assert refused(world, sweep({**base, "resources": {**gang, "num_workers": 99}}))[0] is CapacityError
    wrong = sweep(space={"lr": [1e-4]}, budget={"runs": 0.2})
    assert refused(world, wrong)[1].splitlines() == [
        "space.lr: unknown key; use train.learning_rate",
        "budget: it pays for at most 0.2 runs, but one trial with its cool-downs takes 1.1: give more, fewer rungs, or "
        "scheduler: none",
    ]
    assert "base.data.eval_fraction" in refused(world, sweep(finetune()))[1]


def compare(base: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return sweep(base, **{"kind": "compare", "methods": ["full", "lora"], **more})


def test_a_comparison_is_an_elastic_job_with_the_gangs_of_one_of_its_sweeps(world: ServiceWorld) -> None:
    gang = {"num_workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 1}
    base = {**sweep()["base"], "resources": gang, **queue(priority=-7)}
    (job,) = world.admit(compare(base, num_gangs=3))
    assert (job.kind, str(job.gang), job.sizes) == ("compare", "2 workers of 1 CPU and 1 GPU", (2, 4, 6))
    assert job.preemptible and job.priority == -7
    assert refused(world, compare({**base, "resources": {**gang, "num_workers": 99}}))[0] is CapacityError
    wrong = compare(space={"lr": [1e-4]}, budget={"runs": 0.2})
    assert [line.partition(":")[0] for line in refused(world, wrong)[1].splitlines()] == ["space.lr", "budget"]
    assert "methods: must be a list of 2 or more" in refused(world, compare(methods=["full"]))[1]


def test_a_comparison_may_train_on_the_model_of_another_job(world: ServiceWorld) -> None:
    (parent,) = world.admit(finetune())
    base = {**sweep()["base"], "model": {"path": "run:train-", "task": "causal-lm"}}
    (job,) = world.admit(compare(base))
    assert job.after == (parent.job_id,)
    assert json.loads(world.store.spec(job.job_id))["base"]["model"]["path"] == f"run:{parent.job_id}"
    refusal = refused(world, finetune(f"run:{job.job_id}", name="more"))
    assert f"{job.job_id} is of kind compare, and only kind finetune exports a model" in refusal[1]


@pytest.mark.parametrize("search", [sweep, compare])
def test_the_run_of_a_search_is_below_the_storage_of_its_base(
    search: Callable[..., dict[str, Any]], world: ServiceWorld, tmp_path: Path
) -> None:
    job = world.started(search({**sweep()["base"], "storage_path": str(tmp_path)}))
    registered = register(world.context, Register(job_id=job.job_id, attempt=job.attempt))
    assert registered.run is not None and registered.run.startswith(f"{tmp_path}/found-")
    assert registered.kind == job.kind and world.job(job.job_id).run == registered.run


@pytest.mark.parametrize("search", [sweep, compare])
def test_the_paths_of_a_search_are_those_of_its_base(
    search: Callable[..., dict[str, Any]], world: ServiceWorld, tmp_path: Path
) -> None:
    base = {**sweep()["base"], "storage_path": str(tmp_path)}
    kind, text = refused(world, search({**base, "model": {"path": "/no/such/model", "task": "causal-lm"}}))
    assert kind is NotReadable and text == "base.model.path: /no/such/model is not there, or cannot be read"
