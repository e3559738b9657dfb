"""`fleetune gc` on run folders as they are left behind: on a disk, in memory, and on an object store."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.run.checkpoints import commit_path, committed_steps
from jobs.run.find import run_names
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths, prepared_root
from jobs.storage import files as storage
from jobs.storage.listing import listing
from orchestrator.cli.commands.gc import gc
from orchestrator.cli.help_groups import command_group
from orchestrator.gc import remove as act
from orchestrator.gc.plan import plan_gc
from orchestrator.gc.remove import carry_out
from orchestrator.gc.scan import look
from orchestrator.gc.values import Bounds, ToRemove
from tests.support.cutstorage import Cut, changes

pytestmark = pytest.mark.usefixtures("own_protocols")

DAY = 86_400.0
APP = command_group()
APP.command()(gc)


def make_run(root: str, name: str, days: float, status: Status | None = Status.SUCCEEDED, **spec: Any) -> JobPaths:
    """A run that ended so long ago, with two checkpoints of 1,000 bytes and a model of 500."""
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    paths = JobPaths.of(root, f"{name}-{at:%Y%m%d-%H%M%S}-0001")
    storage.write_bytes(paths.spec, json.dumps({"model": {"path": "/m"}, **spec}).encode())
    storage.write_bytes(paths.manifest, json.dumps({"data_fingerprint": "d" * 32}).encode())
    for step in (10, 20):
        storage.write_bytes(storage.join(paths.checkpoint(step), "rank-0.safetensors"), bytes(1000))
        storage.write_bytes(commit_path(paths, step), b"{}")
    storage.write_bytes(storage.join(paths.model, "model.safetensors"), bytes(500))
    storage.write_bytes(storage.join(paths.events, f"{int(at.timestamp() * 1e9):020d}-driver.jsonl"), b"{}\n")
    if status is not None:
        write_outcome(paths, Outcome(status=status, ended_at=at))
    _age(paths.root, at.timestamp())
    return paths


def make_prepared(root: str, fingerprint: str, days: float, *sources: str) -> str:
    folder = prepared_root(root, fingerprint)
    splits = {"train": [{"folder": f"{source}/rows"} for source in sources]}
    storage.write_bytes(storage.join(folder, "manifest.json"), json.dumps({"splits": splits}).encode())
    storage.write_bytes(storage.join(folder, "rows/shard-00000.arrow"), bytes(300))
    _age(folder, time.time() - days * DAY)
    return folder


def _age(path: str, at_s: float) -> None:
    """As if all its files had been written then."""
    if storage.is_local(path):
        for file in listing(path):
            os.utime(os.path.join(path, file.name), (at_s, at_s), follow_symlinks=False)
    elif path.startswith("memory://"):
        fs, inner = storage.filesystem(path)
        for name in fs.find(inner):
            fs.store[name].modified = fs.store[name].created = datetime.datetime.fromtimestamp(at_s, datetime.UTC)


def fleetune_gc(root: str, *options: str, **env: str | None) -> Result:
    surroundings = {"FLEETUNE_URL": None, "FLEETUNE_HOME": "/nowhere", **env}
    done = CliRunner().invoke(APP, ["--storage", root, *options], env=surroundings)
    assert "unexpected" not in done.output, done.output
    return done


def test_without_a_bound_it_says_what_there_is_and_removes_nothing(root: str) -> None:
    make_run(root, "a", 40)
    before = listing(root)
    done = fleetune_gc(root)
    assert done.exit_code == 0 and listing(root) == before
    assert "a-" in done.output and "3 kB" in done.output and "--older-than 30d" in done.output


def test_dry_run_says_exactly_what_the_real_one_then_does(root: str) -> None:
    old, new = make_run(root, "old", 40), make_run(root, "new", 4)
    before = listing(root)
    dry = fleetune_gc(root, "--older-than", "30d", "--dry-run")
    assert dry.exit_code == 0 and listing(root) == before
    real = fleetune_gc(root, "--older-than", "30d")
    assert dry.output.splitlines()[:-1] == real.output.splitlines()[:-1]
    assert run_names(root) == [new.name] and not [one for one in listing(root) if one.name.startswith(old.name)]
    assert storage.list_names(root) == [new.name]
    assert fleetune_gc(root, "--older-than", "30d").output.splitlines()[-1] == "removed 0 B in 0 places"


def test_only_checkpoints_go_and_the_model_stays(root: str) -> None:
    paths = make_run(root, "a", 40)
    done = fleetune_gc(root, "--older-than", "30d", "--checkpoints-only", "--json")
    told = json.loads(done.stdout)
    assert [(one["goes"], one["freed"]) for one in told["runs"]] == [("checkpoints", 2004)] and told["removed"] == 2004
    assert committed_steps(paths) == [] and not storage.exists(paths.checkpoints)
    assert storage.exists(paths.spec) and storage.list_names(paths.model) == ["model.safetensors"]


def test_the_checkpoints_of_all_trials_of_a_search_go_before_it(root: str) -> None:
    sweep = make_run(root, "search", 40, kind="sweep")
    for part in ("0001", "methods/lora/0002", "methods/full/final"):
        trial = make_run(storage.join(sweep.root, *part.split("/")), "x", 40)
        for file in listing(trial.root):
            storage.move_file(
                storage.join(trial.root, *file.name.split("/")), storage.join(sweep.root, *part.split("/"), file.name)
            )
        storage.remove_dir(trial.root)
    _age(sweep.root, time.time() - 40 * DAY)
    whole = {file.name for file in listing(sweep.root)}
    done = fleetune_gc(root, "--max-size", "5kB", "--json")
    assert [(one["goes"], one["freed"]) for one in json.loads(done.stdout)["runs"]] == [("checkpoints", 4 * 2004)]
    left = {file.name for file in listing(sweep.root)}
    assert left == {name for name in whole if "checkpoints/" not in name} and len(whole) - len(left) == 4 * 4


def test_the_size_is_kept_by_what_hurts_least(root: str) -> None:
    failed, good = make_run(root, "failed", 9, Status.FAILED), make_run(root, "good", 8)
    size = look(root, time.time()).size
    done = fleetune_gc(root, "--max-size", f"{size - 1}B")
    assert done.exit_code == 0, done.output
    assert (committed_steps(failed), committed_steps(good)) == ([10, 20], [])
    assert fleetune_gc(root, "--max-size", "0B").exit_code == 0 and run_names(root) == []


def test_what_lives_stays(root: str) -> None:
    running, resumed = make_run(root, "running", 0.0, None), make_run(root, "resumed", 40, Status.INTERRUPTED)
    lost = make_run(root, "lost", 2.0, None)
    storage.write_bytes(resumed.spec, b"{}")  # somebody has just begun to go on with it
    done = fleetune_gc(root, "--older-than", "0s", "--max-size", "0B")
    assert run_names(root) == sorted([running.name, resumed.name]), done.output
    assert not storage.exists(lost.root) and "what is kept exceeds --max-size" in done.output


def test_files_that_are_no_runs_are_never_touched(root: str) -> None:
    make_run(root, "a", 40)
    for name in (
        "notes.txt",
        "own/model.bin",
        ".hidden/spec.json",
        "prepared/own/x",
        "prepared/readme",
        "own/removing",
    ):
        storage.write_bytes(storage.join(root, name), b"mine")
    _age(root, time.time() - 90 * DAY)
    done = fleetune_gc(root, "--older-than", "0s", "--max-size", "0B", "--prepared")
    assert done.exit_code == 0, done.output
    assert len(listing(root)) == 6 and "never removed: 24 B" in done.output


def test_prepared_data_that_no_run_uses_goes_with_the_option_only(root: str) -> None:
    make_run(root, "a", 4)
    used, source = make_prepared(root, "d" * 32, 90, "e" * 32), make_prepared(root, "e" * 32, 90)
    unused = make_prepared(root, "f" * 32, 90)
    report = storage.join(root, "prepared/checks", "a" * 32)
    storage.write_bytes(storage.join(report, "report.html"), b"x")
    _age(report, time.time() - 90 * DAY)
    assert fleetune_gc(root, "--older-than", "30d").exit_code == 0 and storage.exists(unused)
    done = fleetune_gc(root, "--older-than", "30d", "--prepared")
    assert not storage.exists(unused) and not storage.exists(report), done.output
    assert storage.exists(used) and storage.exists(source)


def test_data_that_is_being_prepared_stays(root: str) -> None:
    folder = make_prepared(root, "f" * 32, 90)
    storage.remove_file(storage.join(folder, "manifest.json"))
    storage.write_bytes(storage.join(folder, "preparing.json"), b"{}")
    assert fleetune_gc(root, "--older-than", "0s", "--prepared").exit_code == 0 and storage.exists(folder)
    _age(folder, time.time() - 2 * DAY)  # whoever prepared it has long been dead
    assert fleetune_gc(root, "--older-than", "1d", "--prepared").exit_code == 0 and not storage.exists(folder)


@pytest.mark.parametrize("goes", [ToRemove.RUN, ToRemove.CHECKPOINTS])
def test_wherever_it_is_cut_off_nothing_half_looks_whole_and_the_next_one_ends_it(
    tmp_path: pathlib.Path, goes: ToRemove
) -> None:
    """Every change of the storage is the last one once."""
    root = str(tmp_path)
    bounds = Bounds(older_than_s=30 * DAY, checkpoints_only=goes is ToRemove.CHECKPOINTS)
    for allowed in range(100):
        paths = make_run(root, "a", 40)
        with changes(allowed):
            plan = plan_gc(look(f"cut://{root}", time.time()), bounds, time.time())
            cut = False
            try:
                assert not [one.problem for one in carry_out(f"cut://{root}", plan) if one.problem]
            except Cut:
                cut = True
        names = {file.name for file in listing(paths.root)}
        if storage.exists(paths.spec):
            assert all(f"checkpoints/step-{step:08d}/rank-0.safetensors" in names for step in committed_steps(paths))
            assert {"model/model.safetensors", "outcome.json"} <= names
        if not cut:
            assert allowed >= 4 and not storage.exists(paths.root if goes is ToRemove.RUN else paths.checkpoints)
            return
        _age(root, time.time() - 40 * DAY)
        again = fleetune_gc(root, "--older-than", "30d")
        assert again.exit_code == 0 and storage.list_names(root) == [], again.output
    raise AssertionError("it never came to its end")


def test_a_run_that_is_written_to_between_look_and_removal_stays(root: str) -> None:
    paths = make_run(root, "a", 40)
    plan = plan_gc(look(root, time.time()), Bounds(older_than_s=DAY), time.time())
    storage.write_bytes(storage.join(paths.root, "attempts/0001.json"), b"{}")
    (removed,) = carry_out(root, plan)
    assert removed.problem == "it was written to in the meantime" and storage.exists(paths.spec)
    assert not storage.exists(paths.removing)


def test_what_cannot_be_removed_is_told_and_the_rest_goes(tmp_path: pathlib.Path) -> None:
    stuck, fine = make_run(str(tmp_path), "stuck", 50), make_run(str(tmp_path), "fine", 40)
    with changes(refused=stuck.name):
        done = fleetune_gc(f"cut://{tmp_path}", "--older-than", "30d")
    assert done.exit_code == 1 and f"could not remove {stuck.name}: cannot write" in done.output
    assert not storage.exists(fine.root) and storage.exists(stuck.spec)


def test_two_at_once_leave_nothing(root: str) -> None:
    for number in range(10):
        make_run(root, f"a{number}", 40 + number)
    plan = plan_gc(look(root, time.time()), Bounds(older_than_s=DAY), time.time())
    with ThreadPoolExecutor(4) as pool:
        every = [one for of_one in pool.map(lambda _: list(carry_out(root, plan)), range(4)) for one in of_one]
    assert storage.list_names(root) == [], [one.problem for one in every if one.problem]


@pytest.mark.parametrize(
    "where", ["checkpoints/step-00000010", "checkpoints", "logs", "model", "", "spec.json", "outcome.json"]
)
@pytest.mark.parametrize("option", ["--checkpoints-only", "--prepared"])
def test_no_link_in_a_run_leads_to_the_files_of_others(tmp_path: pathlib.Path, where: str, option: str) -> None:
    """Here the link is there before `gc` looks."""
    others = make_run(str(tmp_path / "others"), "theirs", 40)
    (tmp_path / "runs").mkdir()
    mine = make_run(str(tmp_path / "runs"), "mine", 50)
    target = {"checkpoints": others.checkpoints, "": others.root}.get(where, storage.join(others.root, where))
    place = pathlib.Path(mine.root, where) if where else pathlib.Path(mine.root)
    pathlib.Path(others.logs).mkdir()
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    _age(str(tmp_path / "runs"), time.time() - 50 * DAY)
    before = listing(str(tmp_path / "others"))
    fleetune_gc(str(tmp_path / "runs"), "--older-than", "1d", option)
    assert listing(str(tmp_path / "others")) == before


@pytest.mark.parametrize("goes", [ToRemove.RUN, ToRemove.CHECKPOINTS])
@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step-00000010"])
def test_a_link_that_comes_after_the_look_is_not_followed_either(
    tmp_path: pathlib.Path, goes: ToRemove, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is replaced by a link once its content has been checked, and nothing behind the link is changed."""
    others, mine = make_run(str(tmp_path / "others"), "theirs", 40), make_run(str(tmp_path / "runs"), "mine", 50)
    root = str(tmp_path / "runs")
    plan = plan_gc(look(root, time.time()), Bounds(DAY, checkpoints_only=goes is ToRemove.CHECKPOINTS), time.time())
    before = listing(others.root)

    def swapped(*_: object) -> None:
        place = pathlib.Path(mine.root, where)
        place.rename(tmp_path / "aside")
        place.symlink_to(pathlib.Path(others.root, where))

    monkeypatch.setattr(act, "_check_as_seen", swapped)
    list(carry_out(root, plan))
    assert listing(others.root) == before and pathlib.Path(others.root).is_dir()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--older-than", "30"], "as in 12h or 30d"),
        (["--max-size", "-5GB"], "as in 500GB"),
        (["--keep-last", "-1"], "--keep-last"),
    ],
)
def test_bad_bounds_are_refused(root: str, options: list[str], words: str) -> None:
    done = fleetune_gc(root, *options)
    assert done.exit_code == 2 and words in done.output


def test_a_storage_path_that_is_empty_or_not_there_is_refused(tmp_path: pathlib.Path) -> None:
    assert "--storage is empty" in fleetune_gc("", "--older-than", "1d").output
    done = fleetune_gc(str(tmp_path / "gone"), "--older-than", "1d")
    assert done.exit_code == 2 and "there is no directory" in done.output


# A server of the queue, as far as this command asks it.


def test_a_link_is_not_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "runs").mkdir()
    elsewhere = make_run(str(tmp_path / "elsewhere"), "b", 40)
    paths = make_run(str(tmp_path / "runs"), "a", 40)
    os.symlink(elsewhere.root, f"{paths.root}/linked")
    _age(paths.root, time.time() - 40 * DAY)
    os.symlink(elsewhere.root, tmp_path / "runs" / elsewhere.name)
    done = fleetune_gc(str(tmp_path / "runs"), "--older-than", "30d", "--max-size", "0B")
    assert done.exit_code == 0 and not storage.exists(paths.root), done.output
    assert committed_steps(elsewhere) == [10, 20]
