"""Runs are listed and described from what they left behind."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.errors import InputError, StorageError
from jobs.run.find import find_run
from jobs.run.outcome import Outcome, Status, event, outcome_of, read_outcome, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.requests import ask_to_save
from jobs.run.summary import describe_run, list_runs, summarise, utc_now
from jobs.storage import files as storage
from jobs.storage.journal import JournalWriter
from jobs.storage.text import read_end
from orchestrator.pages.show import ending, run_page, runs_table
from tests.support.counted import counted_bytes

pytestmark = pytest.mark.usefixtures("own_protocols")

NOW = datetime.datetime(2026, 11, 24, 12, 0, tzinfo=datetime.UTC)


def now() -> datetime.datetime:
    return NOW


def make_run(root: str, name: str = "a-20261124-115900-0001") -> JobPaths:
    paths = JobPaths.of(root, name)
    storage.write_bytes(paths.spec, json.dumps({"model": {"path": "/m"}, "data": {"train": "/d"}}).encode())
    return paths


def end(paths: JobPaths, status: Status = Status.SUCCEEDED, **more: Any) -> None:
    write_outcome(paths, Outcome(status=status, ended_at=NOW, **more))


def put_part(folder: str, at: datetime.datetime, *records: dict[str, Any]) -> None:
    name = f"{int(at.timestamp() * 1e9):020d}-000000-0.jsonl"
    storage.write_bytes(storage.join(folder, name), "".join(json.dumps(one) + "\n" for one in records).encode())


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://runs"
    fsspec.filesystem("memory").rm("/runs", recursive=True)


def test_ended_run_has_the_status_of_its_outcome(root: str) -> None:
    paths = make_run(root)
    end(paths, Status.FAILED, reason="out of memory", step=7, metrics={"loss": 1.5})
    run = summarise(paths, now)
    assert (run.status, run.reason, run.step, run.metrics) == ("failed", "out of memory", 7, {"loss": 1.5})


def test_run_that_wrote_lately_is_running_and_a_silent_one_is_lost(root: str) -> None:
    paths = make_run(root)
    put_part(paths.metrics, NOW - datetime.timedelta(minutes=4), {"step": 3, "loss": 0.5, "learning_rate": 1e-5})
    run = summarise(paths, now)
    assert (run.status, run.step, run.metrics, run.silent_s) == ("running", 3, {"loss": 0.5}, 60.0)
    later = summarise(paths, lambda: NOW + datetime.timedelta(minutes=5))
    assert (later.status, later.silent_s) == ("lost", 360.0)


def test_event_is_a_sign_of_life_too(root: str) -> None:
    paths = make_run(root, "a-20261124-000000-0001")
    put_part(paths.events, NOW - datetime.timedelta(minutes=1), {"kind": "phase"})
    assert summarise(paths, now).status == "running"


def test_loss_that_is_no_number_is_shown_and_is_null_in_json(root: str) -> None:
    paths = make_run(root)
    for loss in (math.nan, "NaN"):  # as earlier releases wrote it, and as it is written
        put_part(paths.metrics, NOW, {"step": 3, "loss": loss})
        run = summarise(paths, now)
        assert "nan" in runs_table([run], NOW) and json.loads(run.model_dump_json())["metrics"] == {"loss": None}


def test_what_the_journal_writes_is_what_is_read(root: str) -> None:
    paths = make_run(root)
    writer = JournalWriter(paths.metrics)
    writer.append({"step": 1, "loss": 2.0})
    writer.append({"step": 2, "loss": 1.0, "eval_accuracy": 0.5})
    writer.close()
    run = summarise(paths, utc_now)
    assert (run.status, run.step, run.metrics) == ("running", 2, {"loss": 1.0, "eval_accuracy": 0.5})


def test_runs_are_listed_in_the_order_of_their_start_and_other_folders_are_not(root: str) -> None:
    for name in ("z-20261124-100000-0001", "a-20261124-110000-0001", "renamed"):
        end(make_run(root, name))
    storage.write_bytes(storage.join(root, "prepared", "x", "manifest.json"), b"{}")
    storage.write_bytes(storage.join(root, "notes.txt"), b"")
    assert [run.name for run in list_runs(root)] == ["renamed", "z-20261124-100000-0001", "a-20261124-110000-0001"]


def test_one_damaged_run_does_not_hide_the_others(root: str) -> None:
    end(make_run(root, "good-20261124-100000-0001"))
    storage.write_bytes(make_run(root, "newer-20261124-100001-0001").outcome, b'{"version": 99}')
    storage.write_bytes(make_run(root, "torn-20261124-100002-0001").outcome, b'{"vers')
    assert [run.status for run in list_runs(root)] == ["succeeded", "unreadable", "unreadable"]


@pytest.mark.parametrize("torn", [b'{"step": 1, "lo', b"[1]\n", b"\xff\n"])
def test_a_damaged_part_of_the_metrics_is_the_reason_why_one_run_is_unreadable(root: str, torn: bytes) -> None:
    end(make_run(root, "good-20261124-100000-0001"))
    damaged = make_run(root, "torn-20261124-100001-0001")
    put_part(damaged.metrics, NOW, {"step": 1})
    part = storage.join(damaged.metrics, storage.list_names(damaged.metrics)[0])
    storage.write_bytes(part, torn)
    runs = list_runs(root)
    assert [run.status for run in runs] == ["succeeded", "unreadable"]
    assert runs[1].reason == f"{part} is damaged. Restore the file, or remove it: then the records in it are missing"
    with pytest.raises(StorageError, match=r"is damaged\. Restore the file"):
        describe_run(damaged.root, now)


@pytest.mark.parametrize("torn", [b"", b'{"vers', b"[]", b"\xff", b'{"version": "x"}', b'{"status": "great"}'])
def test_a_damaged_outcome_says_what_to_do(root: str, torn: bytes) -> None:
    paths = make_run(root)
    storage.write_bytes(paths.outcome, torn)
    said = f"{paths.outcome} is not the outcome of a run: remove the file, and the run counts as lost"
    assert summarise(paths, now).reason == said
    assert said in run_page(describe_run(paths.root, now))


def test_keys_that_a_newer_release_has_added_to_an_outcome_are_ignored(root: str) -> None:
    paths = make_run(root)
    end(paths, troubles=[{"remedy": "hang", "at": NOW, "cause": "c", "action": "a"}])
    written = storage.read_bytes(paths.outcome)
    storage.write_bytes(paths.outcome, written.replace(b"{\n", b'{ "added": 1,\n'))
    assert read_outcome(paths) == outcome_of(written, "") and summarise(paths, now).status == "succeeded"


@pytest.mark.parametrize("torn", [b"", b'{"model": ', b"[]", b"\xff"])
def test_a_damaged_spec_is_named(root: str, torn: bytes) -> None:
    paths = make_run(root)
    storage.write_bytes(paths.spec, torn)
    for use in (describe_run, ask_to_save):
        with pytest.raises(StorageError, match=f"{re.escape(paths.spec)} is not the spec of a run"):
            use(paths.root)


def test_missing_storage_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="FLEETUNE_STORAGE_PATH"):
        list_runs(str(tmp_path / "nope"))


def test_run_is_found_by_name_unique_start_and_path(root: str) -> None:
    first, second = make_run(root, "abc-1"), make_run(root, "abd-2")
    assert find_run("abc-1", root) == find_run("abc", root) == first.root
    assert find_run(second.root, "/elsewhere") == second.root


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_start_of_the_only_run(root: str, name: str) -> None:
    make_run(root, "abc-1")
    with pytest.raises(InputError, match="RUN is empty: is a shell variable not set"):
        find_run(name, root)


def test_exact_name_wins_over_a_longer_one(root: str) -> None:
    exact = make_run(root, "abc")
    make_run(root, "abc-2")
    assert find_run("abc", root) == exact.root


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("ab", "'ab' may mean 2 runs: abc-1, abd-2"), ("abx-1", "did you mean abc-1"), ("qqqqqqq", "are abc-1, abd-2")],
)
def test_run_that_is_not_found_says_what_there_is(root: str, asked: str, expected: str) -> None:
    make_run(root, "abc-1")
    make_run(root, "abd-2")
    with pytest.raises(InputError) as caught:
        find_run(asked, root)
    assert expected in str(caught.value)


def test_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run: there is no spec\.json in it"):
        find_run(str(tmp_path), "/elsewhere")


def test_failed_run_is_described_with_events_and_the_end_of_its_log(root: str) -> None:
    paths = make_run(root)
    end(paths, Status.FAILED, reason="loss is NaN", step=2, metrics_before={"eval_accuracy": 0.5})
    events = [
        event("plan", "9 steps", total_steps=9),
        *(event("phase", f"p{number}") for number in range(20)),
        event("alive", "shown to nobody"),
    ]
    put_part(paths.events, NOW, *(one.model_dump(mode="json") for one in events))
    storage.write_bytes(paths.log("driver"), b"".join(b"line %d\n" % number for number in range(2000)))
    page = run_page(describe_run(paths.root, now))
    for part in ("loss is NaN", "2/9", "accuracy 0.5", "phase: p19", "line 1999", paths.log("driver")):
        assert part in page
    assert "p9\n" not in page and "line 999\n" not in page


def test_interrupted_run_does_not_report_its_start_as_its_end(root: str) -> None:
    paths = make_run(root)
    end(paths, Status.INTERRUPTED, step=7, metrics={"loss": 0.6}, metrics_before={"eval_loss": 0.69})
    assert "loss 0.69" not in runs_table([summarise(paths, now)], NOW)
    page = run_page(describe_run(paths.root, now))
    assert re.search(r"\nbefore +loss 0.69\nafter +not evaluated since\ntrain loss +0.6\n", page)


def test_held_out_metrics_stand_with_the_step_that_was_evaluated(root: str) -> None:
    paths = make_run(root)
    end(paths, Status.INTERRUPTED, step=7, metrics={"loss": 0.6, "eval_loss": 0.5}, evaluated_step=5)
    assert "loss 0.5  (evaluated after step 5)" in runs_table([summarise(paths, now)], NOW)
    assert re.search(r"\nafter step 5 +loss 0\.5\n", run_page(describe_run(paths.root, now)))


def test_accuracy_stands_with_the_majority_s_share_and_each_class_with_its_scores(root: str) -> None:
    paths = make_run(root)
    spec = {"model": {"path": "/m"}, "data": {"train": "/d", "labels": ["bad", "good"]}}
    storage.write_bytes(paths.spec, json.dumps(spec).encode())
    metrics = {"eval_accuracy": 0.7, "eval_majority_share": 0.6}
    end(paths, step=7, metrics=metrics, evaluated_step=7, confusion=((5, 1), (2, 2)))
    page = run_page(describe_run(paths.root, now))
    assert "accuracy 0.7 (majority class 0.6)" in page
    for line in (
        "class bad +precision 0.714  recall 0.833  f1 0.769  .6 samples: 5 as bad, 1 as good.",
        "class good +precision 0.667  recall 0.500  f1 0.571  .4 samples: 2 as bad, 2 as good.",
    ):
        assert re.search(line, page)


def test_run_that_was_killed_is_described_with_how_to_go_on(root: str) -> None:
    paths = make_run(root, "a-20261124-100000-0001")
    assert f"fleetune run --resume {paths.root}" in run_page(describe_run(paths.root, now)), "from the start"
    end(paths)
    assert "resume" not in run_page(describe_run(paths.root, now))


@pytest.mark.parametrize("kind", ["sweep", "compare"])
def test_a_search_that_ended_early_is_described_with_how_to_go_on_although_it_has_no_checkpoint(
    root: str, kind: str
) -> None:
    paths = make_run(root)
    storage.write_bytes(paths.spec, json.dumps({"kind": kind, "base": {}}).encode())
    assert describe_run(paths.root, now).resume is None, "it runs"
    for ended in ({"status": Status.INTERRUPTED}, {"status": Status.FAILED}):
        end(paths, **ended, reason="x")
        assert f"fleetune run --resume {paths.root}" in run_page(describe_run(paths.root, now))
    end(paths, Status.FAILED, reason="x", bad_input=True)
    assert describe_run(paths.root, now).resume is None, "it would fail again"


def test_a_trial_is_resumed_by_its_sweep(root: str) -> None:
    sweep = make_run(root, "s-20261124-100000-0001")
    storage.write_bytes(sweep.spec, json.dumps({"kind": "sweep", "base": {}}).encode())
    trial = make_run(sweep.root, "0001")
    end(trial, Status.INTERRUPTED, reason="on request", step=4)
    assert describe_run(trial.root, now).resume == f"fleetune run --resume {sweep.root}"
    spaced = make_run(f"{root}/a b", "s-1")
    storage.write_bytes(spaced.spec, json.dumps({"kind": "sweep", "base": {}}).encode())
    assert f"fleetune sweep leaderboard '{spaced.root}'" in run_page(describe_run(spaced.root, now))
    end(sweep)
    assert describe_run(trial.root, now).resume is None, "the sweep has succeeded"


def test_the_model_of_a_run_is_where_the_run_is_now(root: str) -> None:
    paths = make_run(root)
    end(paths, model_path="/before/it/was/moved/model")
    assert "model" not in describe_run(paths.root, now).paths, "it was not moved along"
    storage.write_bytes(storage.join(paths.model, "config.json"), b"{}")
    assert describe_run(paths.root, now).paths["model"] == paths.model
    sweep = make_run(root, "s-20261124-100000-0001")
    storage.write_bytes(sweep.spec, json.dumps({"kind": "sweep", "base": {}}).encode())
    end(sweep, model_path=f"/before/{sweep.name}/0003/model")
    assert describe_run(sweep.root, now).paths["model"] == f"/before/{sweep.name}/0003/model"
    storage.write_bytes(storage.join(sweep.root, "0003/model/config.json"), b"{}")
    assert describe_run(sweep.root, now).paths["model"] == f"{sweep.root}/0003/model"


def test_run_that_goes_on_is_where_its_newest_attempt_is(root: str) -> None:
    paths = make_run(root)
    put_part(paths.metrics, NOW - datetime.timedelta(minutes=9), {"step": 8, "loss": 1.0}, {"step": 9, "loss": 0.5})
    put_part(paths.metrics, NOW, {"step": 6, "loss": 1.5})
    assert (summarise(paths, now).step, describe_run(paths.root, now).last_step) == (6, {"step": 6, "loss": 1.5})


def test_an_interrupted_run_s_page_has_no_paths_among_the_events_and_no_log(root: str) -> None:
    paths = make_run(root)
    put_part(paths.events, NOW, {"kind": "ended", "message": "interrupted: on request\nlogs: here\nresume: so"})
    storage.write_bytes(paths.log("driver"), b"a warning of Ray")
    end(paths, Status.INTERRUPTED, reason="on request", step=4)
    page = run_page(describe_run(paths.root, now))
    assert "ended: interrupted: on request" in page
    assert "logs: here" not in page and "end of" not in page


def test_a_long_last_line_of_a_log_is_shown_without_what_moves_the_cursor(root: str) -> None:
    paths = make_run(root)
    storage.write_bytes(paths.log("driver"), b"first\n" + b"\x1b[2J" * 3000 + b"gone\rthe \x1b[31mreason\n")
    end(paths, Status.FAILED, reason="a defect", step=4)
    shown = run_page(describe_run(paths.root, now)).partition("end of ")[2]
    assert shown == f"{paths.log('driver')}\nthe \x1b[31mreason"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", ""),
        ("a\nb\n", "a\nb"),
        ("long line\nb\nc\n", "b\nc"),
        ("a\nlong line\n", "ong line"),
        ("long line", "ong line"),
    ],
)
def test_the_end_of_a_text_has_whole_lines_unless_the_last_is_too_long(root: str, text: str, end: str) -> None:
    path = storage.join(root, "a.log")
    storage.write_bytes(path, text.encode())
    assert read_end(path, 8 + text.endswith("\n")) == end


def test_an_empty_log_is_not_shown(root: str) -> None:
    paths = make_run(root)
    storage.write_bytes(paths.log("rank-0"), b"")
    end(paths, Status.FAILED, reason="a defect", step=4)
    assert "end of" not in run_page(describe_run(paths.root, now))


def test_a_run_with_an_adapter_says_how_much_of_the_model_is_trained(root: str) -> None:
    paths = make_run(root)
    spec = {"model": {"path": "/m"}, "data": {"train": "/d"}, "method": {"kind": "lora"}}
    storage.write_bytes(paths.spec, json.dumps(spec).encode())
    plan = {"total_steps": 9, "trainable": 677_000, "parameters": 23_400_000}
    put_part(paths.events, NOW, {"kind": "plan", "message": "training", "data": plan})
    assert re.search(r"\nmethod +lora, trainable 677k of 23.4M parameters\n", run_page(describe_run(paths.root, now)))


def test_run_that_wrote_nothing_yet_can_be_described(root: str) -> None:
    details = describe_run(make_run(root).root, now)
    assert (details.summary.status, details.total_steps, details.log_tail) == ("running", None, None)
    assert run_page(details)


def test_listing_reads_one_part_of_the_metrics_however_many_there_are() -> None:
    with counted_bytes() as count:
        paths = make_run("counted:///runs")
        for number in range(2000):
            name = f"{number:020d}-000000-0.jsonl"
            storage.write_bytes(storage.join(paths.metrics, name), b"not json: must not be read\n")
        put_part(paths.metrics, NOW, {"step": 9})
        before = count()
        assert summarise(paths, now).step == 9
        assert 0 < count() - before < 1000


def test_the_table_at_the_end_repeats_nothing_that_the_last_line_said(tmp_path: Path) -> None:
    ended_at = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
    outcome = Outcome(status=Status.INTERRUPTED, reason="stopped on request", step=3, ended_at=ended_at)
    root = str(tmp_path / "a-20261124-115900-0001")
    assert "stopped on request" in ending(outcome, root) and f"{root}/logs" in ending(outcome, root)
    told = ending(outcome, root, told=True)
    assert "interrupted after 3 steps" in told and root in told
    assert "stopped on request" not in told and "logs" not in told and "resume" not in told


def test_a_run_that_goes_on_has_its_last_evaluation_and_the_one_before_training(tmp_path: Path) -> None:
    paths = make_run(str(tmp_path))
    put_part(paths.events, NOW, {"kind": "evaluated", "data": {"step": 0, "metrics": {"eval_loss": 9.0}}})
    put_part(paths.metrics, NOW, {"step": 4, "loss": 3.0}, {"step": 5, "loss": 2.0, "eval_loss": 2.5})
    put_part(paths.metrics, NOW + datetime.timedelta(seconds=1), *({"step": step, "loss": 1.0} for step in (6, 7)))
    details = describe_run(paths.root, now)
    run = details.summary
    assert (run.step, run.metrics, run.evaluated_step) == (7, {"loss": 1.0, "eval_loss": 2.5}, 5)
    assert details.metrics_before == {"eval_loss": 9.0}
    # A later attempt has gone back to before the evaluation.
    put_part(paths.metrics, NOW + datetime.timedelta(seconds=2), {"step": 4, "loss": 3.1})
    assert (summarise(paths, now).metrics, summarise(paths, now).evaluated_step) == ({"loss": 3.1}, None)


def test_an_evaluation_of_long_ago_is_shown_too(tmp_path: Path) -> None:
    paths = make_run(str(tmp_path))
    for step, loss in ((0, 9.0), (1, 2.5), (90, 2.0)):
        at = NOW + datetime.timedelta(microseconds=step)
        put_part(paths.events, at, {"kind": "evaluated", "data": {"step": step, "metrics": {"eval_loss": loss}}})
    for step in range(1, 41):
        put_part(paths.metrics, NOW + datetime.timedelta(seconds=step), {"step": step, "loss": 1.0})
    run = describe_run(paths.root, now).summary
    assert (run.metrics, run.evaluated_step) == ({"loss": 1.0, "eval_loss": 2.5}, 1)
