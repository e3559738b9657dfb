"""A driver that waits for room hears a request to stop; one that has lost its run to another driver ends."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import Interrupted, RunTaken
from jobs.drivers.finetune import ray_driver
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

    def never(spec: Any, places: Any, announce: Any, check: Any) -> None:
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

    monkeypatch.setattr(ray_driver, "find_room", lambda *given: None)
    monkeypatch.setattr(ray_driver, "fit", fit)
    monkeypatch.setattr(ray_driver, "leaving_nodes", dict)
    watch = SimpleNamespace(look=lambda: None, newest=None)
    driver: Any = SimpleNamespace(announce=lambda *_, **__: None, places=None, alone=True, stop=stop, watch=watch)
    spec = tiny.spec_of(tmp_path, tmp_path / "model", tmp_path / "text.jsonl")
    nothing: Any = None
    training = ray_driver.Training(
        Job(spec, str(tmp_path), "prepared", "model"), driver, nothing, StopRelay(stop, paths, driver.announce)
    )
    with contextlib.nullcontext() if trains else pytest.raises(Interrupted, match="before the workers trained"):
        training.run()
    assert looks == 1 and storage.exists(paths.stop_request) == trains


def test_a_driver_whose_run_another_one_has_taken_neither_takes_it_back_nor_writes_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers saw the other driver's id, and ended as lost ones do."""
    paths, own = JobPaths(str(tmp_path)), take_run(JobPaths(str(tmp_path)))

    def cut_off(*given: Any, **named: Any) -> Any:
        take_run(paths)
        raise RuntimeError("worker died")

    monkeypatch.setattr(ray_driver, "find_room", lambda *given: None)
    monkeypatch.setattr(ray_driver.Training, "_fitted", cut_off)
    driver: Any = SimpleNamespace(announce=lambda *_, **__: None, places=None, stop=StopRequest())
    job: Any = SimpleNamespace(paths=paths, spec=None, driver=own)
    nothing: Any = None
    with contextlib.closing(Announcer(paths, NoProgress())) as announce, pytest.raises(RunTaken, match="has taken run"):
        concluded(paths, lambda: ray_driver.Training(job, driver, nothing, nothing).run(), announce)  # type: ignore[arg-type, return-value]
    assert not storage.exists(paths.outcome) and storage.read_bytes(paths.driver).decode() != own
