"""A comparison is stopped as a run is, and goes on unchanged."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from cluster.errors import DataError, Diverged, InputError, MachinesFailed, RunFailed, SpecError
from jobs.compare import failure_of, reopen_comparison
from jobs.drivers.finetune.begin import load_job, load_work
from jobs.drivers.stop_request import StopRequest
from jobs.run.events import repeatedly
from jobs.run.find import with_model_of_run
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.requests import ask_to_save, ask_to_stop
from jobs.spec.compare import CompareSpec
from jobs.spec.load import dump_spec, load_spec
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


def test_a_model_of_a_comparison_is_one_of_its_methods(tmp_path: Path) -> None:
    paths = written_in(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(BASE | {"model": {"path": f"run:{paths.name}", "task": "causal-lm"}}))
    with pytest.raises(DataError, match="is a comparison, which has a model for each method"):
        with_model_of_run(load_spec(str(tmp_path / "job.json")))
