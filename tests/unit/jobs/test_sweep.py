"""A sweep is stopped as a run is, also before its search begins."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import sweep as sweeps
from jobs.drivers.stop_request import StopRequest
from jobs.run.outcome import Event, Outcome, Status
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.requests import ask_to_stop
from tests.unit.jobs.search.driver.test_final import sweep_in


def test_what_fleetune_stop_leaves_interrupts_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_in(tmp_path)

    def drive_sweep(sweep: Any, paths: JobPaths, *given: Any) -> Outcome:
        ask_to_stop(paths.root)
        threading.Event().wait(60.0)  # as the preparation of data
        raise AssertionError("nothing has interrupted it")

    monkeypatch.setattr(sweeps, "validate", lambda base, **named: SimpleNamespace(spec=base, warnings=()))
    monkeypatch.setattr(sweeps, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setitem(sys.modules, "jobs.search.driver.drive", SimpleNamespace(drive_sweep=drive_sweep))
    outcome = sweeps.run_sweep(sweep, address="auto", progress=NoProgress(), root=str(tmp_path / "run"))
    assert outcome.status is Status.INTERRUPTED


def test_only_a_sweep_of_its_own_names_the_command_that_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue and a comparison resume their sweeps themselves."""

    class Lines(NoProgress):
        def event(self, event: Event) -> None:
            lines.append(event.message)

    def drive_sweep(*given: Any) -> Outcome:
        raise KeyboardInterrupt

    lines = list[str]()
    monkeypatch.setattr(sweeps, "validate", lambda base, **named: SimpleNamespace(spec=base, warnings=()))
    monkeypatch.setitem(sys.modules, "jobs.search.driver.drive", SimpleNamespace(drive_sweep=drive_sweep))
    for name, stop in (("alone", None), ("part", StopRequest())):
        root = str(tmp_path / name)
        sweeps.run_sweep(sweep_in(tmp_path), address="auto", progress=Lines(), root=root, stop=stop)
        assert any(f"resume: fleetune run --resume {root}" in line for line in lines) == (stop is None)
