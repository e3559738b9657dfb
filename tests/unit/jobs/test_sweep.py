"""A sweep is stopped as a run is, and a comparison that it belongs to keeps up with it."""

from __future__ import annotations

import datetime
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import sweep as sweeps
from jobs.comparison.measured import measure, read_comparison, write_comparison
from jobs.drivers import stop_request
from jobs.drivers.stop_request import StopRequest
from jobs.run.outcome import Event, Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.requests import ask_to_stop
from jobs.search.ledger import Ledger
from jobs.spec.load import dump_spec
from jobs.storage.files import write_bytes
from tests.unit.jobs.search.driver.test_final import sweep_in
from tests.unit.jobs.spec.test_compare import compare_of

Drive = Callable[[JobPaths], Outcome]


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Callable[[Drive], None]:
    """Sets what the driver of a sweep does, in place of training."""

    def by(drive: Drive) -> None:
        fake = SimpleNamespace(drive_sweep=lambda sweep, paths, *given: drive(paths))
        monkeypatch.setitem(sys.modules, "jobs.search.driver.drive", fake)

    monkeypatch.setattr(sweeps, "validate", lambda base, **named: SimpleNamespace(spec=base, warnings=()))
    monkeypatch.setattr(stop_request, "_LOOK_EVERY_S", 0.1)
    return by


def test_what_fleetune_stop_leaves_interrupts_the_preparation(tmp_path: Path, driven: Callable[[Drive], None]) -> None:
    def drive(paths: JobPaths) -> Outcome:
        ask_to_stop(paths.root)
        threading.Event().wait(60.0)  # as the preparation of data
        raise AssertionError("nothing has interrupted it")

    driven(drive)
    outcome = sweeps.run_sweep(sweep_in(tmp_path), address="auto", progress=NoProgress(), root=str(tmp_path / "run"))
    assert outcome.status is Status.INTERRUPTED


def test_a_sweep_that_goes_on_by_itself_updates_the_files_of_its_comparison(
    tmp_path: Path, driven: Callable[[Drive], None]
) -> None:
    spec, paths = compare_of(tmp_path), JobPaths(str(tmp_path / "compared"))
    write_bytes(paths.spec, dump_spec(spec))
    for method in spec.methods:
        write_bytes(JobPaths(paths.method(method.name)).spec, dump_spec(spec.sweep_of(method)))
    first = spec.sweep_of(spec.methods[0]).model_copy(update={"prior": {"learning_rate": 1e-4}})
    root = paths.method(spec.methods[0].name)
    ended = Outcome(status=Status.INTERRUPTED, ended_at=datetime.datetime.now(datetime.UTC))
    driven(lambda sweep: ended)
    sweeps.run_sweep(first, address="auto", progress=NoProgress(), root=root)
    write_comparison(paths, measure(spec, paths), page=True)
    write_outcome(paths, ended)

    def drive(sweep: JobPaths) -> Outcome:
        ledger = Ledger(first, sweep.root, lambda job: 20, 1000.0)
        ledger.add({"learning_rate": 1e-4})
        ledger.close()
        return ended.model_copy(update={"ended_at": datetime.datetime.now(datetime.UTC)})

    driven(drive)
    sweeps.run_sweep(first, address="auto", progress=NoProgress(), resume=root)
    found = read_comparison(paths)
    assert found is not None and [one.trials for one in found.methods] == [1, 0]


def test_only_a_sweep_of_its_own_names_the_command_that_resumes_it(
    tmp_path: Path, driven: Callable[[Drive], None]
) -> None:
    """A queue and a comparison resume their sweeps themselves."""

    class Lines(NoProgress):
        def event(self, event: Event) -> None:
            lines.append(event.message)

    def interrupted(sweep: JobPaths) -> Outcome:
        raise KeyboardInterrupt

    lines = list[str]()
    driven(interrupted)
    for name, stop in (("alone", None), ("part", StopRequest())):
        root = str(tmp_path / name)
        sweeps.run_sweep(sweep_in(tmp_path), address="auto", progress=Lines(), root=root, stop=stop)
        assert any(f"resume: fleetune run --resume {root}" in line for line in lines) == (stop is None)
