"""A driver that waits for room hears a request to stop; one that has lost its run to another driver ends."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.capacity.feasibility import largest_gang
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import Interrupted, RunTaken
from jobs.drivers.finetune import machines, ray_driver
from jobs.drivers.stop_request import Stopped, StopRelay, StopRequest
from jobs.run.attempts import take_run, write_attempt
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.record import concluded
from jobs.storage import files as storage
from jobs.training.worker_input import Job
from tests.support import tiny


def test_fleetune_stop_is_heard_while_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, looks = JobPaths(str(tmp_path)), 0

    def never(spec: Any, places: Any, announce: Any, check: Any, numbers: Any) -> None:
        nonlocal looks
        while True:
            check()
            looks += 1
            storage.write_bytes(paths.stop_request, b"")

    monkeypatch.setattr(ray_driver, "find_room", never)
    driver: Any = SimpleNamespace(announce=lambda *_, **__: None, places=None, stop=StopRequest())
    job: Any = SimpleNamespace(paths=paths, spec=None)
    nothing: Any = None
    with pytest.raises(Stopped):
        ray_driver.Training(job, driver, nothing, nothing).run()
    assert looks == 1 and driver.stop.source == "file"


@pytest.mark.parametrize(("began", "trains"), [(0, False), (1, True)])
def test_a_stop_ends_workers_that_have_not_begun_to_train_and_asks_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: int, trains: bool
) -> None:
    """An earlier group has trained; the present one loads the model, or trains as well."""
    paths, stop, looks = JobPaths(str(tmp_path)), StopRequest(), 0
    write_attempt(paths, 0, 1)

    def fit(job: Any, places: Any, alone: bool, look: Any, **_: Any) -> None:
        nonlocal looks
        for _group in range(began):
            write_attempt(paths, 40, 1)
        look()
        stop.ask("signal", "SIGTERM")
        looks += 1
        look()

    monkeypatch.setattr(ray_driver, "find_room", lambda spec, *given: spec)
    monkeypatch.setattr(ray_driver, "fit", fit)
    monkeypatch.setattr(ray_driver, "leaving_nodes", dict)
    watch = SimpleNamespace(look=lambda: None, look_when_due=lambda: None, newest=None)
    driver: Any = SimpleNamespace(announce=lambda *_, **__: None, places=None, alone=True, stop=stop, watch=watch)
    spec = tiny.spec_of(tmp_path, tmp_path / "model", tmp_path / "text.jsonl")
    nothing: Any = None
    training = ray_driver.Training(
        Job(spec, str(tmp_path), "prepared", "model"), driver, nothing, StopRelay(stop, paths, driver.announce)
    )
    with contextlib.nullcontext() if trains else pytest.raises(Interrupted, match="before the workers trained"):
        training.run()
    assert looks == 1 and storage.exists(paths.stop_request) == trains


class Cluster:
    """Five nodes with one free CPU each until `lose`. Time passes while a run waits for room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes, self.now_s = 5, 0.0
        monkeypatch.setattr(machines, "wait_for_room", self.wait)
        monkeypatch.setattr(machines, "free_now", self.free)
        monkeypatch.setattr(machines, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def free(self) -> Inventory:
        return Inventory(tuple(Node(f"n{number}", cpus=1, gpus=0) for number in range(self.nodes)))

    def wait(self, gang: Gang, say: Any, check: Any) -> None:
        while largest_gang(gang, self.free()) < gang.num_workers:
            self.now_s += 2.0
            check()
            if self.now_s > 600.0:
                raise TimeoutError


def elastic(folder: Path) -> Any:
    return tiny.spec_of(folder, folder / "model", folder / "text.jsonl", train__global_batch_size=8).with_value(
        "resources.num_workers", 4
    )


@pytest.mark.parametrize(("left", "workers", "waits_s"), [(4, 4, 0.0), (3, 2, 62.0), (2, 2, 62.0)])
def test_an_elastic_run_without_a_queue_goes_on_with_fewer_workers_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, workers: int, waits_s: float
) -> None:
    cluster, told = Cluster(monkeypatch), list[str]()
    cluster.nodes = left
    driver: Any = SimpleNamespace(announce=lambda kind, text: told.append(text), places=None, stop=StopRequest())
    nothing: Any = None
    job = Job(elastic(tmp_path), str(tmp_path), "prepared", "model")
    training = ray_driver.Training(job, driver, nothing, nothing, numbers=(1, 2, 4))
    training._find_room()
    assert training.job.spec.resources.num_workers == workers and cluster.now_s == waits_s
    assert told == (["there is no room for 4 workers of 1 CPU: going on with 2 workers of 1 CPU"] if waits_s else [])


def test_a_run_of_one_size_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    cluster.nodes = 3
    with pytest.raises(TimeoutError):
        machines.find_room(elastic(tmp_path), None, lambda *_, **__: None, numbers=(4,))


def test_a_driver_whose_run_another_one_has_taken_neither_takes_it_back_nor_writes_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers saw the other driver's id, and ended as lost ones do."""
    paths, own = JobPaths(str(tmp_path)), take_run(JobPaths(str(tmp_path)))

    def cut_off(*given: Any, **named: Any) -> Any:
        take_run(paths)
        raise RuntimeError("worker died")

    monkeypatch.setattr(ray_driver, "find_room", lambda spec, *given: spec)
    monkeypatch.setattr(ray_driver.Training, "_fitted", cut_off)
    driver: Any = SimpleNamespace(announce=lambda *_, **__: None, places=None, stop=StopRequest())
    job: Any = SimpleNamespace(paths=paths, spec=None, driver=own)
    nothing: Any = None
    with contextlib.closing(Announcer(paths, NoProgress())) as announce, pytest.raises(RunTaken, match="has taken run"):
        concluded(paths, lambda: ray_driver.Training(job, driver, nothing, nothing).run(), announce)  # type: ignore[arg-type, return-value]
    assert not storage.exists(paths.outcome) and storage.read_bytes(paths.driver).decode() != own
