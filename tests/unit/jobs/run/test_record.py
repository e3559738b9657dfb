"""The outcome that a run's end leaves, also where its files are damaged."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cluster.errors import MachinesFailed, MetricFailed, RunFailed, StorageError, StorageOutage
from jobs.run.checkpoints import commit_path
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.record import concluded, ending_of
from jobs.storage import files as storage
from jobs.storage.journal import JournalWriter


@pytest.mark.parametrize("name", ["plan.json", "remedies.json"])
@pytest.mark.parametrize("content", [b'{"version": 99}', b"[]", b'{"version": 1}', b"{"])
def test_a_file_that_cannot_be_read_hides_no_troubles(tmp_path: Path, name: str, content: bytes) -> None:
    paths = JobPaths(str(tmp_path))

    def failed() -> Outcome:
        announce("remedy", "", remedy="hang", cause="rank 1 hung", action="it is killed", effect="")
        raise RunFailed("rank 1 has failed")

    storage.write_bytes(f"{paths.root}/{name}", content)
    with contextlib.closing(Announcer(paths, NoProgress())) as announce:
        outcome = concluded(paths, failed, announce)
    assert [one.cause for one in outcome.troubles] == ["rank 1 hung"] and read_outcome(paths) == outcome


@pytest.mark.parametrize(
    ("trains", "error", "exit_code"),
    [(True, StorageError, 1), (False, StorageError, 2), (True, StorageOutage, 75)],
)
def test_a_storage_that_refuses_a_file_is_no_mistake_of_the_input_once_steps_were_trained(
    tmp_path: Path, trains: bool, error: type[StorageError], exit_code: int
) -> None:
    paths = JobPaths(str(tmp_path))

    def log(step: int) -> None:
        with contextlib.closing(JournalWriter(paths.metrics)) as journal:
            journal.append({"step": step, "loss": 2.0})

    def drive() -> Outcome:
        if trains:
            log(4)
        raise error("cannot write manifest.json: No space left on device")

    log(3)  # in an earlier attempt
    with contextlib.closing(Announcer(paths, NoProgress())) as announce:
        assert concluded(paths, drive, announce).exit_code == exit_code


@pytest.mark.parametrize("saved", [True, False])
def test_a_metric_that_fails_late_ends_with_the_command_to_resume(tmp_path: Path, saved: bool) -> None:
    """Once it is corrected, the run goes on from its checkpoint."""
    paths = JobPaths(str(tmp_path))

    def evaluated() -> Outcome:
        if saved:
            storage.write_bytes(commit_path(paths, 5), b"{}")
        raise MetricFailed("eval.metrics: own:score failed: KeyError: 'x'")

    with contextlib.closing(Announcer(paths, NoProgress())) as announce:
        outcome = concluded(paths, evaluated, announce)
    assert outcome.exit_code == 2
    assert (f"resume: fleetune run --resume {paths.root}" in ending_of(paths, outcome)) is saved


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_job_whose_machine_has_failed_is_the_queues_to_start_elsewhere_unless_its_spec_forbids_it(
    tmp_path: Path, elsewhere: bool
) -> None:
    paths = JobPaths(str(tmp_path))

    def broken() -> Outcome:
        raise MachinesFailed("rank 1: CUDA error: uncorrectable ECC error")

    with contextlib.closing(Announcer(paths, NoProgress())) as announce:
        outcome = concluded(paths, broken, announce, starts_elsewhere=elsewhere)
    assert (outcome.status, outcome.lost) == (Status.FAILED, elsewhere)
    assert outcome.exit_code == (MachinesFailed.exit_code if elsewhere else 1)
    assert str(outcome.reason).endswith(
        "uncorrectable ECC error" + ("" if elsewhere else ". remedies.machine is false")
    )
    assert [(one.remedy, one.cause) for one in outcome.troubles] == [
        ("machine", "rank 1: CUDA error: uncorrectable ECC error")
    ]
