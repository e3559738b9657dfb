"""Orders to a running run are files in its directory; a run that has ended takes none."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import InputError
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.requests import ask_to_save, ask_to_stop, ask_trial_to_end
from jobs.storage import files as storage

STARTED = datetime.datetime(2026, 11, 24, 11, 59, tzinfo=datetime.UTC)


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    paths = JobPaths(str(tmp_path / "a-20261124-115900-0001"))
    storage.write_bytes(paths.spec, b"{}")
    return paths


def soon() -> datetime.datetime:
    return STARTED + datetime.timedelta(seconds=10)


def test_stop_leaves_a_request_and_says_how_to_go_on(paths: JobPaths) -> None:
    said = ask_to_stop(paths.root, soon)
    assert "at its next step, and end" in said and f"fleetune run --resume {paths.root}" in said
    assert "While it waits or loads the model, it ends soon, without a checkpoint" in said
    assert storage.exists(paths.stop_request) and not storage.exists(paths.save_request)


def test_a_sweep_has_no_step_of_its_own_to_stop_at(paths: JobPaths) -> None:
    storage.write_bytes(paths.spec, b'{"kind": "sweep"}')
    said = ask_to_stop(paths.root, soon)
    assert said.startswith(f"sweep {paths.name} will end as interrupted. Trials that are being trained save a ")
    assert said.endswith(f"To go on later: fleetune run --resume {paths.root}")


def test_a_trial_that_is_paused_ends_without_a_step(paths: JobPaths) -> None:
    storage.write_bytes(paths.spec, b'{"kind": "sweep"}')
    trial = JobPaths.of(paths.root, "0001")
    storage.write_bytes(trial.spec, b"{}")
    said = ask_trial_to_end(trial.root, 1)
    assert said == "trial 1 is not being trained: it will be stopped without another step"
    assert storage.exists(trial.stop_request)
    write_outcome(paths, Outcome(status=Status.INTERRUPTED, step=4, ended_at=STARTED))
    assert ask_trial_to_end(trial.root, 1) == f"{said}, once the sweep is resumed"
    write_outcome(trial, Outcome(status=Status.INTERRUPTED, step=4, ended_at=STARTED))
    with pytest.raises(InputError, match="has ended: interrupted after 4 steps"):
        ask_trial_to_end(trial.root, 1)


def test_a_trial_is_stopped_with_the_commands_of_its_sweep(paths: JobPaths) -> None:
    storage.write_bytes(paths.spec, b'{"kind": "sweep"}')
    trial = JobPaths.of(paths.root, "0001")
    storage.write_bytes(trial.spec, b"{}")
    put = f"{int(STARTED.timestamp() * 1e9):020d}-0.jsonl"
    storage.write_bytes(storage.join(trial.metrics, put), b'{"step": 1}')
    said = ask_to_stop(trial.root, soon)
    assert f"fleetune stop {paths.root};" in said and said.endswith(f"fleetune run --resume {paths.root}")
    assert storage.exists(trial.stop_request) and not storage.exists(paths.stop_request)


def test_save_leaves_another_request(paths: JobPaths) -> None:
    assert ask_to_save(paths.root, soon).endswith("at its next step, and go on")
    assert storage.exists(paths.save_request) and not storage.exists(paths.stop_request)


def test_silent_run_is_asked_with_a_doubt(paths: JobPaths) -> None:
    said = ask_to_save(paths.root, lambda: STARTED + datetime.timedelta(minutes=7))
    assert "if it is alive: it has been silent for 7m00s" in said


@pytest.mark.parametrize("ask", [ask_to_stop, ask_to_save])
def test_ended_run_is_not_asked(paths: JobPaths, ask: Callable[[str], str]) -> None:
    write_outcome(paths, Outcome(status=Status.INTERRUPTED, step=4, ended_at=STARTED))
    with pytest.raises(InputError, match="has ended: interrupted after 4 steps"):
        ask(paths.root)
    assert storage.list_names(paths.root) == ["outcome.json", "spec.json"]
