"""What `fleetune submit` says about memory and time, against a real server whose nodes have eight H100."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import SpecError
from orchestrator.api import JobView, NodeView
from orchestrator.cli.submission import SubmitOptions, submit_all
from orchestrator.cli.submit_plan import places_of
from orchestrator.client.connection import Connection
from orchestrator.client.lookup import all_jobs
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


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


def test_a_job_that_fits_on_no_gpu_of_the_cluster_is_not_queued(
    queue: Server, material: tuple[Path, Path], tmp_path: Path
) -> None:
    large = {"train__per_device_train_batch_size": 2_000_000, "train__global_batch_size": 32_000_000}
    good, bad = file_of(tmp_path, material), file_of(tmp_path, material, "large", **large)
    with pytest.raises(SpecError, match=r"large\.json.*2x8xH100-80.*does not fit.*2000000.*resources\.plan: false"):
        submitted(queue, good, bad)
    with closing(Connection(queue.url)) as connection:
        assert not [job for job in all_jobs(connection) if job.job_id.startswith("large")]
    for options in ({"overrides": ("resources.plan=false",)}, {"check": False}):
        jobs, said = submitted(queue, bad, **options)
        assert len(jobs) == 1 and not any(line.startswith("plan") for line in said)


def node(name: str, gpus: int = 8, kind: str | None = "H100", usable: bool = True) -> NodeView:
    return NodeView(
        node_id=name, cpus=64, gpus=gpus, accelerator_type=kind, usable=usable, foreign_cpus=0, foreign_gpus=0,
        order="use", by="", reason="", since_s=None, held=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "kind", "expected"),
    [
        (4, None, {"A100-40G": "4xA100-40", "GX-9": "None", "H100": "4xH100-80"}),
        (16, None, {"A100-40G": "4x4xA100-40", "GX-9": "None", "H100": "2x8xH100-80"}),
        (6, None, {"A100-40G": "2x3xA100-40", "GX-9": "None", "H100": "6xH100-80"}),
        (8, "H100", {"H100": "8xH100-80"}),
        (8, "B200", {}),
    ],
)
def test_a_gang_is_planned_for_each_kind_of_node(
    workers: int, kind: str | None, expected: dict[str, str], material: tuple[Path, Path], tmp_path: Path
) -> None:
    resources = {"num_workers": workers, "gpus_per_worker": 1, "accelerator_type": kind}
    job = spec_of(tmp_path, *material, resources=resources)
    nodes = [node("a"), node("b", gpus=2), node("c", 4, "A100-40G"), node("d", 0, None), node("e", kind="GX-9")]
    nodes.append(node("f", 8, "B200", usable=False))
    assert {kind: str(machines) for kind, machines in places_of(job, nodes).items()} == expected
