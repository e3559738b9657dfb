"""What a comparison shows before it has ended."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from jobs.comparison.measured import comparison_so_far, measure, read_comparison, write_again_after, write_comparison
from jobs.comparison.page import comparison_text
from jobs.run.outcome import Outcome, Status, event, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.summary import describe_run
from jobs.search.ledger import Ledger
from jobs.search.spending import devices_of
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from jobs.storage.files import write_bytes
from jobs.storage.journal import JournalWriter
from orchestrator.pages.show import run_page
from tests.unit.jobs.spec.test_compare import compare_of


def test_the_hours_of_a_running_search_count_before_its_first_answer(tmp_path: Path) -> None:
    spec, paths = compare_of(tmp_path), JobPaths(str(tmp_path / "runs/compare-20261128-120000-abcd"))
    write_bytes(paths.spec, dump_spec(spec))
    for method in spec.methods:
        write_bytes(JobPaths(paths.method(method.name)).spec, dump_spec(spec.sweep_of(method)))
    sweep, searched = spec.sweep_of(spec.methods[0]), JobPaths(paths.method(spec.methods[0].name))
    ledger = Ledger(sweep, searched.root, lambda job: 20, 1000.0)
    ledger.add({"learning_rate": 1e-4})
    ledger.close()
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)
    events = JournalWriter(searched.events, "driver")
    for data in ({"phase": "workers", "driver": "01"}, {"phase": "train", "trial": 1, "until": 20}):
        told = event("phase", "", **data).model_copy(update={"at": began})
        events.append(told.model_dump(mode="json"))
    events.close()
    found = comparison_so_far(paths)
    assert found is not None
    running, waiting = found.methods
    assert running.device_hours == pytest.approx(2.0 * devices_of(sweep.base), rel=0.01) and running.trials == 1
    assert (waiting.device_hours, waiting.trials) == (0.0, 0)
    assert "GPU-hours, 1 trial" in comparison_text(found)


def test_a_sweep_that_went_on_after_its_comparison_has_new_figures(tmp_path: Path) -> None:
    spec, paths = compare_of(tmp_path), JobPaths(str(tmp_path / "runs/compare-20261128-120000-abcd"))
    write_bytes(paths.spec, dump_spec(spec))
    ended = Outcome(status=Status.SUCCEEDED, ended_at=datetime.datetime.now(datetime.UTC))
    for method in spec.methods:
        write_bytes(JobPaths(paths.method(method.name)).spec, dump_spec(spec.sweep_of(method)))
        write_outcome(JobPaths(paths.method(method.name)), ended)
    kept = measure(spec, paths, price=2.5)
    write_comparison(paths, kept)
    assert measure(spec, paths).price == 2.5, "a resume keeps the price"
    write_outcome(paths, ended)
    assert comparison_so_far(paths) == kept
    newer = storage.read_bytes(paths.comparison).replace(b"{\n", b'{ "added": 1,\n')
    storage.write_bytes(paths.comparison, newer)
    assert newer.count(b"added") == 3 and comparison_so_far(paths) == kept, "a newer release has added keys"
    sweep, searched = spec.sweep_of(spec.methods[0]), JobPaths(paths.method(spec.methods[0].name))
    ledger = Ledger(sweep, searched.root, lambda job: 20, 1000.0)
    ledger.add({"learning_rate": 1e-4})
    ledger.close()
    write_outcome(searched, ended.model_copy(update={"ended_at": ended.ended_at + datetime.timedelta(hours=1)}))
    now = comparison_so_far(paths)
    assert now is not None and [one.trials for one in now.methods] == [1, 0]
    assert write_again_after(searched) and read_comparison(paths) == now and not storage.exists(paths.comparison_page)
    write_comparison(paths, kept, page=True)
    before = storage.read_bytes(paths.comparison_page)
    assert write_again_after(searched) and storage.read_bytes(paths.comparison_page) != before
    storage.remove_file(paths.outcome)  # it is resumed, and writes its figures itself
    assert not write_again_after(searched) and not write_again_after(JobPaths(str(tmp_path / "runs/found-1")))


def test_the_metrics_of_a_comparison_are_only_in_its_table(tmp_path: Path) -> None:
    """The outcome has those of the best method, and a line "after" would not say of which."""
    spec, paths = compare_of(tmp_path), JobPaths(str(tmp_path / "runs/compare-20261128-120000-abcd"))
    write_bytes(paths.spec, dump_spec(spec))
    now = datetime.datetime.now(datetime.UTC)
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, metrics={"eval_loss": 0.54}, ended_at=now))
    assert not re.search(r"^after", run_page(describe_run(paths.root)), re.MULTILINE)
