"""What `fleetune submit` and `Client.plan` say about memory and time. The server is real; its nodes are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BackendUnreachable, InputError, SpecError
from jobs.spec.load import load_spec
from jobs.spec.sweep import SweepSpec
from orchestrator import Client
from orchestrator.api import JobView, NodeView
from orchestrator.cli.submission import SubmitOptions, submit_all
from orchestrator.client.connection import Connection
from orchestrator.client.plans import gangs_of, machines_on, plan_gang, planned_jobs
from orchestrator.client.spec_names import Named
from tests.support.server import Server, server
from tests.support.tiny import changed, save_model, spec_of, write_text, written


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server"), nodes=2) as found:
        yield found


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and text."""
    folder = tmp_path_factory.mktemp("material")
    return save_model(folder / "model", "llama"), write_text(folder / "text.jsonl", 60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def file_of(folder: Path, material: tuple[Path, Path], name: str = "job", **changes: Any) -> str:
    raw = written(str(folder / "runs"), *material, classify=False)
    raw["name"], raw["train"] = name, {"learning_rate": 1e-3, "max_steps": 20, "global_batch_size": 32}
    gpus = {"resources": {"num_workers": 16, "gpus_per_worker": 1}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(changed(raw | gpus, {key.replace("__", "."): value for key, value in changes.items()})))
    return str(path)


def submitted(queue: Server, *files: str, **options: Any) -> tuple[list[JobView], list[str]]:
    said: list[str] = []
    with closing(Connection(queue.url)) as connection:
        jobs = submit_all(connection, SubmitOptions(files, **options), said.append)
    return jobs, said


def test_it_says_what_each_job_will_take_and_plans_equal_ones_once(
    queue: Server, material: tuple[Path, Path], tmp_path: Path
) -> None:
    path = file_of(tmp_path, material)
    jobs, said = submitted(queue, path, sweep=("train.learning_rate=1e-4,1e-3", "data.seq_len=32,64"))
    assert len(jobs) == 4
    plans = [line for line in said if line.startswith("plan of ")]
    assert [line.partition("-sl")[2][:2] for line in plans] == ["32", "64"], said
    assert all("on 2x8xH100-80" in line and "for 20 steps" in line and "chosen: " in line for line in plans)
    assert said.count("planning the memory of the workers") == 1


def test_a_job_that_fits_on_no_gpu_of_the_cluster_is_queued_with_a_warning(
    queue: Server, material: tuple[Path, Path], tmp_path: Path
) -> None:
    large = {"train__per_device_train_batch_size": 2_000_000, "train__global_batch_size": 32_000_000}
    bad = file_of(tmp_path, material, "large", **large)
    jobs, said = submitted(queue, file_of(tmp_path, material), bad)
    (warning,) = [line for line in said if line.startswith("warning: the plan of ")]
    assert len(jobs) == 2 and "large.json" in warning and "2x8xH100-80" in warning
    assert "does not fit with the values of the spec. The run will change them: per_device_train_batch" in warning
    _, said = submitted(queue, bad, overrides=("remedies.out_of_memory=false",))
    (warning,) = [line for line in said if line.startswith("warning: the plan: ")]
    assert "does not fit: the option that lacks least" in warning
    assert "a smaller train.per_device_train_batch_size (2000000)" in warning
    for options in ({"overrides": ("resources.plan=false",)}, {"check": False}):
        jobs, said = submitted(queue, bad, **options)
        assert len(jobs) == 1 and not any(line.startswith(("plan", "warning: the plan")) for line in said)


def test_what_an_adapter_needs_is_planned_for_itself(
    queue: Server, material: tuple[Path, Path], tmp_path: Path
) -> None:
    _, said = submitted(queue, file_of(tmp_path, material, method="lora"), sweep=("lora.rank=2,8",))
    assert len([line for line in said if line.startswith("plan of ")]) == 2


def test_a_setting_of_a_sweep_without_effect_is_a_warning(
    queue: Server, material: tuple[Path, Path], tmp_path: Path
) -> None:
    base = json.loads(Path(file_of(tmp_path, material, data__eval_fraction=0.2, resources__plan=False)).read_text())
    search = {"space": {"learning_rate": [1e-4, 1e-3]}, "scheduler": "none", "rungs": [0.5], "budget": {"trials": 2}}
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"kind": "sweep", "algorithm": "random", "base": base, **search}))
    jobs, said = submitted(queue, str(path))
    assert len(jobs) == 1 and said[0].startswith("warning: rungs has no effect with scheduler: none"), said


def test_a_sweep_is_planned_unless_its_trials_have_different_engines(
    material: tuple[Path, Path], tmp_path: Path
) -> None:
    base = json.loads(Path(file_of(tmp_path, material, data__eval_fraction=0.2)).read_text())

    def of(space: dict[str, Any]) -> Any:
        return planned_jobs(SweepSpec.model_validate({"kind": "sweep", "base": base, "space": space}))

    assert [title for title, _ in of({"learning_rate": [1e-4, 1e-3]})] == [""]
    assert of({"per_device_train_batch_size": [1, 2]}) == []


def test_each_method_of_a_comparison_is_planned(queue: Server, material: tuple[Path, Path], tmp_path: Path) -> None:
    base = json.loads(Path(file_of(tmp_path, material, data__eval_fraction=0.2)).read_text())
    path = tmp_path / "compare.json"
    path.write_text(json.dumps({"kind": "compare", "base": base, "methods": ["full", "lora"]}))
    jobs, said = submitted(queue, str(path))
    assert len(jobs) == 1 and jobs[0].kind == "compare"
    plans = [line.partition(": ")[0] for line in said if line.startswith("plan")]
    assert plans[-2:] == ["plan of method full", "plan of method lora"], said
    for changes, wrong in (
        (
            {"methods": ["full", {"method": "lora", "lora": {"target_modules": ["gone"]}}]},
            "method lora: lora.target_mod",
        ),
        ({"methods": ["full", "lora"], "space": {"lr": [1e-4]}}, "compare.json:9: space.lr: unknown key"),
    ):
        path.write_text(json.dumps({"kind": "compare", "base": str(tmp_path / "job.json"), **changes}, indent=1))
        with pytest.raises(InputError) as caught:
            submitted(queue, str(path))
        assert wrong in str(caught.value)


def test_a_script_gets_the_same_plans_and_queues_nothing(
    queue: Server, material: tuple[Path, Path], tmp_path: Path
) -> None:
    path = file_of(tmp_path, material)
    (spec,) = [load_spec(path).model_copy(update={"name": "copy"})]
    large = {"train__per_device_train_batch_size": 2_000_000, "train__global_batch_size": 32_000_000}
    bad = file_of(tmp_path, material, "large", **large)
    with Client(queue.url) as client:
        before = len(list(client.jobs()))
        (plan,) = client.plan(path)
        _, said = submitted(queue, path)
        assert said[1] == f"plan: {plan}" and plan.fits and plan.name == ""
        assert plan.plan.chosen is not None and 0 < plan.plan.chosen.memory.total < plan.plan.chosen.room
        plans = client.plan(path, spec, bad)  # the second one has the plan of the first
        assert [(one.name, one.fits, one.rewrites) for one in plans] == [(path, True, False), (bad, False, True)]
        assert client.plan(file_of(tmp_path, material, "cpu", resources__gpus_per_worker=0)) == []
        wrong = spec.model_copy(update={"train": {"learning_rate": "fast"}})
        for given, message in (
            (wrong, "learning_rate"),
            (file_of(tmp_path, material, "gone", model__path="/gone"), "/gone"),
        ):
            with pytest.raises(InputError) as caught:
                client.plan(given)
            assert message in str(caught.value)
        assert len(list(client.jobs())) == before + 1


def test_a_kind_of_node_that_cannot_run_the_job_is_passed_over(material: tuple[Path, Path], tmp_path: Path) -> None:
    job = spec_of(tmp_path, *material, resources={"num_workers": 2, "gpus_per_worker": 1}, train__bf16=True)
    nodes = (node("old", kind="V100-32G"), node("new"))
    (gang,) = gangs_of([Named(job, "job")], nodes, several=False)
    assert [str(one) for one in gang.machines] == ["2xH100-80", "2xV100-32"]
    assert str(plan_gang(gang).plan.machines) == "2xH100-80"
    with pytest.raises(SpecError, match="V100-32 does not compute in bf16"):
        plan_gang(replace(gang, machines=gang.machines[1:]))


def test_without_an_answer_about_the_nodes_jobs_are_queued(
    queue: Server, material: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = Connection.get

    def fails(self: Connection, path: str, *rest: Any) -> Any:
        if path == "/v1/nodes":
            raise BackendUnreachable("Ray does not answer")
        return get(self, path, *rest)

    monkeypatch.setattr(Connection, "get", fails)
    jobs, said = submitted(queue, file_of(tmp_path, material))
    assert len(jobs) == 1 and "not planned: Ray does not answer" in said


def node(name: str, gpus: int = 8, kind: str | None = "H100", usable: bool = True) -> NodeView:
    return NodeView(
        node_id=name, cpus=64, gpus=gpus, accelerator_type=kind, usable=usable, foreign_cpus=0, foreign_gpus=0,
        order="use", by="", reason="", since_s=None, held=(),
    )  # fmt: skip


NODES = (
    node("a"), node("b", gpus=2), node("c", 4, "A100-40G"), node("d", 0, None), node("e", kind="GX-9"),
    node("f", 8, "B200", usable=False), node("g", 8, None),
)  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"num_workers": 4}, ["4xA100-40", "4xB200-180", "4xH100-80"]),
        ({"num_workers": 10}, ["5x2xH100-80"]),
        ({"num_workers": 6}, ["6xB200-180", "6xH100-80"]),
        ({"num_workers": 8, "accelerator_type": "H100"}, ["8xH100-80"]),
        ({"num_workers": 16}, []),
        ({"num_workers": {"min": 2, "max": 64}}, ["4xA100-40", "8xB200-180", "5x2xH100-80"]),
        ({"num_workers": {"min": 2, "max": 63}}, ["4xA100-40", "8xB200-180", "5x2xH100-80"]),
        ({"num_workers": {"min": 9, "max": 18}}, ["9x1xH100-80"]),  # 10 would take as many passes for 18 rows
        ({"num_workers": 4, "cpus_per_worker": 20}, ["2x2xH100-80"]),
    ],
)
def test_a_gang_is_planned_for_each_kind_of_node_with_room_for_it(
    resources: dict[str, Any], expected: list[str], material: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = 18 if resources["num_workers"] == {"min": 9, "max": 18} else 64
    job = spec_of(tmp_path, *material, resources={"gpus_per_worker": 1, **resources}, train__global_batch_size=rows)
    assert list(map(str, machines_on(job, NODES))) == expected
