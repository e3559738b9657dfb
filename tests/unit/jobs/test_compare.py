"""A comparison is stopped as a run is, and goes on unchanged."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import (
    DataError,
    Diverged,
    InputError,
    Interrupted,
    MachinesFailed,
    OutOfMemory,
    RunFailed,
    SpecError,
)
from jobs import sweep as sweeps
from jobs.compare import failure_of, main, order_of, reopen_comparison, run_comparison
from jobs.drivers.finetune.begin import Assignment, load_job, load_work
from jobs.drivers.stop_request import StopRequest
from jobs.run.events import repeatedly
from jobs.run.find import with_model_of_run
from jobs.run.outcome import Outcome, Status, read_outcome, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.requests import ask_to_save, ask_to_stop
from jobs.spec.compare import CompareSpec
from jobs.spec.load import dump_spec, load_spec
from jobs.spec.sweep import SweepSpec
from jobs.storage.files import write_bytes
from tests.support.processes import wait_for
from tests.unit.jobs.spec.test_compare import BASE, compare_of


def written_in(folder: Path) -> JobPaths:
    """The directory of a comparison, as far as it has been started."""
    paths = JobPaths(str(folder / "runs/compare-20261128-120000-abcd"))
    Path(paths.root).mkdir(parents=True)
    Path(paths.spec).write_bytes(dump_spec(compare_of(folder)))
    return paths


def test_what_fleetune_stop_leaves_stops_it(tmp_path: Path) -> None:
    paths, stop = written_in(tmp_path), StopRequest()
    with repeatedly(lambda: stop.look_for_file(paths), 0.1, "stop-file"):
        ask_to_stop(paths.root)
        wait_for(lambda: stop.asked, "the file is seen", 60.0)
    assert stop.source == "file"


def test_it_is_not_asked_for_a_checkpoint(tmp_path: Path) -> None:
    paths = written_in(tmp_path)
    with pytest.raises(InputError, match=r"Its sweeps save checkpoints: fleetune save \S+/methods/NAME"):
        ask_to_save(paths.root)


def test_one_that_has_succeeded_is_not_begun_again(tmp_path: Path) -> None:
    paths = written_in(tmp_path)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, ended_at=datetime.datetime.now(datetime.UTC)))
    with pytest.raises(InputError, match=r"has succeeded: nothing is left to do\. Its table: fleetune show"):
        reopen_comparison(compare_of(tmp_path), paths)
    assert Path(paths.outcome).exists()


@pytest.mark.parametrize(
    ("outcomes", "kind"),
    [
        ([{"bad_input": True}, {"bad_input": True}], InputError),
        ([{"diverged": True}, {"diverged": True}], Diverged),
        ([{"diverged": True}, {"bad_input": True}], RunFailed),
        ([{"diverged": True}], RunFailed),  # the other one has succeeded
        ([{}, {}], RunFailed),
        ([{"lost": True}], MachinesFailed),  # a resume goes on with it
        ([{"lost": True}, {"diverged": True}], MachinesFailed),
        ([{"out_of_memory": True}, {"diverged": True}], OutOfMemory),  # a queue has a rule for it
    ],
)
def test_only_if_all_sweeps_would_fail_again_it_would(outcomes: list[dict[str, bool]], kind: type[Exception]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    failed = {
        f"m{number}": Outcome(status=Status.FAILED, reason="no", ended_at=now, **ends)
        for number, ends in enumerate(outcomes)
    }
    error = failure_of(failed, 2)
    assert type(error) is kind and str(error).startswith("m0: no")


def test_it_goes_on_with_its_own_spec_and_no_other(tmp_path: Path) -> None:
    paths = written_in(tmp_path)
    spec, root = load_work(None, [], paths.root)
    assert isinstance(spec, CompareSpec) and root == paths.root
    for file, changes in ((None, ["seeds=2"]), (str(tmp_path / "compare.json"), [])):
        with pytest.raises(SpecError, match="goes on with the spec that it began with"):
            load_work(file, changes, paths.root)


def test_a_driver_of_one_job_refuses_it(tmp_path: Path) -> None:
    paths = written_in(tmp_path)
    with pytest.raises(SpecError, match=r"is of kind compare: fleetune run .* runs it"):
        load_job(None, [], paths.root)


def test_its_module_runs_comparisons_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_of(tmp_path)
    for module, file, said in (
        (main, "base.json", f"base.json is of kind finetune: python -m jobs.finetune {tmp_path}/base.json runs it"),
        (sweeps.main, "compare.json", f"is of kind compare: python -m jobs.compare {tmp_path}/compare.json runs it"),
        (main, "gone.json", "gone.json"),
        (main, "compare.json", "this machine has no GPU"),
    ):
        assert module([str(tmp_path / file)]) == 2
        assert said in capsys.readouterr().err


def test_methods_that_have_failed_before_are_searched_last() -> None:
    """An attempt of a queue first goes on with the search that was interrupted."""
    outcomes = {
        "failed": ended(Status.FAILED, reason="no"),
        "lost": ended(Status.FAILED, reason="no", lost=True),
        "succeeded": ended(),
        "interrupted": ended(Status.INTERRUPTED, reason="no"),
        "next": None,
    }
    assert order_of(outcomes) == ["lost", "interrupted", "next", "failed"]


class Driven:
    """The drivers of the sweeps, in place of training: what each was given, and how it ends."""

    def __init__(self, **ends: Outcome) -> None:
        self.ends, self.given = ends, dict[str, Assignment]()

    def drive_sweep(self, sweep: SweepSpec, paths: JobPaths, address: str, *more: Any) -> Outcome:
        self.given[paths.name] = more[-1]
        return self.ends[paths.name]


def ended(status: Status = Status.SUCCEEDED, **more: Any) -> Outcome:
    return Outcome(status=status, ended_at=datetime.datetime.now(datetime.UTC), **more)


@pytest.fixture
def queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Driven], Outcome]:
    """Starts an attempt of a queued comparison whose directory is there, and returns how it ends."""
    spec, paths = compare_of(tmp_path), written_in(tmp_path)
    for method, sweep in zip(spec.methods, spec.sweeps, strict=True):
        write_bytes(JobPaths(paths.method(method.name)).spec, dump_spec(sweep))
    monkeypatch.setattr(sweeps, "validate", lambda base, **named: SimpleNamespace(spec=base, warnings=()))

    def attempt(driven: Driven) -> Outcome:
        monkeypatch.setitem(sys.modules, "jobs.search.driver.drive", driven)
        given = Assignment(("a", "b"), 2, run=paths.root)
        outcome, found = run_comparison(
            spec, address="auto", progress=NoProgress(), resume=paths.root, assignment=given, stop=StopRequest()
        )
        assert found.root == paths.root and read_outcome(paths) == outcome
        return outcome

    return attempt


def test_the_sweeps_of_a_queued_one_share_its_slots_and_only_the_last_gives_some_back(
    queued: Callable[[Driven], Outcome],
) -> None:
    driven = Driven(full=ended(), lora=ended(Status.FAILED, lost=True))
    assert queued(driven).exit_code == MachinesFailed.exit_code, "the queue starts another attempt"
    assert [(name, one.places, one.gives_back) for name, one in driven.given.items()] == [
        ("full", ("a", "b"), False),
        ("lora", ("a", "b"), True),
    ]
    again = Driven(lora=ended(Status.INTERRUPTED))
    assert queued(again).exit_code == Interrupted.exit_code
    assert list(again.given) == ["lora"], "full has succeeded"


def test_a_queued_one_ends_once_a_machine_is_lost(queued: Callable[[Driven], Outcome]) -> None:
    """The queue gives the next attempt other machines."""
    driven = Driven(full=ended(Status.FAILED, lost=True), lora=ended())
    assert queued(driven).exit_code == MachinesFailed.exit_code and list(driven.given) == ["full"]


def test_if_only_the_first_method_is_left_it_is_the_last_one(queued: Callable[[Driven], Outcome]) -> None:
    assert queued(Driven(full=ended(Status.FAILED, diverged=True), lora=ended())).exit_code == 1
    again = Driven(full=ended(Status.FAILED, diverged=True))
    assert queued(again).exit_code == 1 and again.given["full"].gives_back


def test_a_model_of_a_comparison_is_one_of_its_methods(tmp_path: Path) -> None:
    paths = written_in(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(BASE | {"model": {"path": f"run:{paths.name}", "task": "causal-lm"}}))
    with pytest.raises(DataError, match="is a comparison, which has a model for each method"):
        with_model_of_run(load_spec(str(tmp_path / "job.json")))
