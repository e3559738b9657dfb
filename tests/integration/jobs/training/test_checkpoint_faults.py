"""Whatever happens to checkpoints, the newest whole one is used, the run says what happened, and goes on."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import shutil
from collections.abc import Callable
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.errors import DataError
from jobs.run.checkpoints import Read, Slice, committed_steps, read_commit, read_parts, read_slices
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from jobs.storage.tensor_file import Damaged, as_bytes
from jobs.training.checkpoint import to_model
from jobs.training.checkpoint.to_model import export_run
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang

STEPS, EVERY = 16, 4
STOPPED = 9  # a checkpoint of its own, beside those of steps 4 and 8


def flip_a_byte(folder: pathlib.Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_part(folder: pathlib.Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def lose_a_description(folder: pathlib.Path) -> None:
    sorted(folder.glob("rank-*.json"))[1].unlink()


def cut_a_part(folder: pathlib.Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])


def lose_the_marker(folder: pathlib.Path) -> None:
    (folder / "commit.json").unlink()


DAMAGES: list[tuple[Callable[[pathlib.Path], None], str]] = [
    (flip_a_byte, "has other bytes than were written"),
    (lose_a_part, "no such file"),
    (lose_a_description, "no such file"),
    (cut_a_part, "shorter than"),
    (lose_the_marker, "was never finished"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Everything in two gangs."""
    folder = tmp_path_factory.mktemp("faults")
    model = tiny.save_model(folder / "llama", "llama")
    text = tiny.write_text(folder / "text.jsonl", 60)
    spec = tiny.spec_of(
        folder, model, text, train__max_steps=STEPS, train__global_batch_size=4, eval__eval_on_start=False,
        checkpoint__save_steps=EVERY, checkpoint__save_total_limit=3,
    )  # fmt: skip
    undisturbed, stopped = case_of(folder, "undisturbed", spec), case_of(folder, "stopped", spec, STOPPED)
    full = dataclasses.replace(
        undisturbed, name="full", faults={8: {"full": True}, 10: {"full": False}, STEPS: {"full": True}}
    )
    stalled = dataclasses.replace(
        undisturbed, name="stalled", faults={1: {"full": False}, 4: {"stalled": True}, 10: {"stalled": False}}
    )
    # What is called best is the highest loss, so that it is not that of the last step.
    rule = {"save_total_limit": 1, "metric_for_best_model": "loss", "greater_is_better": True}
    best_specs = partial(
        tiny.spec_of, folder, model, text, train__max_steps=STEPS, train__global_batch_size=4, data__eval_fraction=0.2,
        eval__eval_on_start=False, eval__eval_steps=2, checkpoint=rule,
    )  # fmt: skip
    # So that weights may linger after the last evaluation, or be on their way when they are exported.
    lingering = {"train__zero__param_persistence_threshold": 0, "train__zero__prefetch_bucket_size": 100}
    best = case_of(folder, "best", best_specs(checkpoint__load_best_model_at_end=True, **lingering))
    patient = case_of(folder, "patient", best_specs(eval__early_stopping_patience=STEPS // 2 - 1))
    early = case_of(folder, "early", best_specs(eval__early_stopping_patience=2, **lingering))
    lower = [
        case_of(folder, name, best_specs(eval__early_stopping_patience=2, train__zero__stage=stage))
        for name, stage in (("early-zero1", 1), ("early-zero2", 2))
    ]
    few, other = tiny.write_text(folder / "few.jsonl", 8, seed=1), tiny.write_text(folder / "other.jsonl", 40, seed=2)
    by_heart = {
        "data__packing": False,
        "train__max_steps": 80,
        "train__learning_rate": 1e-2,
        "train__global_batch_size": 8,
    }
    overfits = case_of(
        folder, "overfits", tiny.spec_of(folder, model, few, data__eval=str(other), eval__eval_steps=10, **by_heart)
    )
    with_export = frozenset({"best", "patient", "early", "overfits", *(case.name for case in lower)})
    first = [undisturbed, stopped, full, stalled, best, patient, early, *lower, overfits]
    run_gang(folder, 2, first, with_export=with_export)
    killed = dataclasses.replace(early, name="early-killed-before-its-export")
    shutil.copytree(early.paths.root, folder / killed.name)
    shutil.rmtree(killed.paths.model)
    damaged = []
    for damage, _ in DAMAGES:
        shutil.copytree(stopped.paths.root, folder / damage.__name__)
        damage(pathlib.Path(JobPaths(str(folder / damage.__name__)).checkpoint(STOPPED)))
        damaged.append(dataclasses.replace(stopped, name=damage.__name__, stop_at=None))
    shutil.copytree(stopped.paths.root, folder / "all-gone")
    for step in committed_steps(JobPaths(str(folder / "all-gone"))):
        flip_a_byte(pathlib.Path(JobPaths(str(folder / "all-gone")).checkpoint(step)))
    damaged.append(dataclasses.replace(stopped, name="all-gone", stop_at=None))
    run_gang(folder, 2, [*damaged, killed], with_export=frozenset({killed.name}))
    return {case.name: case for case in [*first, killed, *damaged]}


def copied(case: Case, folder: pathlib.Path, *without: str) -> JobPaths:
    """Copy a run, as it could be exported, without these files and directories."""
    paths = JobPaths(str(folder / "copied"))
    shutil.copytree(case.paths.root, paths.root, ignore=shutil.ignore_patterns(*without))
    pathlib.Path(paths.spec).write_bytes(dump_spec(case.spec))
    pathlib.Path(paths.logs).mkdir(exist_ok=True)
    return paths


def losses(case: Case) -> list[float]:
    records = {record["step"]: record["loss"] for record in read_journal(case.paths.metrics)}
    return [records[step] for step in range(1, STEPS + 1)]


def messages(case: Case) -> list[str]:
    return [record["message"] for record in read_journal(case.paths.events)]


def test_checkpoints_are_written_behind_the_training(cases: dict[str, Case]) -> None:
    """And the oldest are removed. The time is that of all runs of the file: with damaged checkpoints, full and stalled
    storage.
    """
    case = cases["undisturbed"]
    assert committed_steps(case.paths) == [8, 12, 16], "the newest three are kept"
    assert sum("checkpoint of step" in message for message in messages(case)) == 4


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damaged_checkpoint_is_passed_over(
    cases: dict[str, Case], damage: Callable[[pathlib.Path], None], said: str
) -> None:
    case = cases[damage.__name__]
    told = messages(case)
    assert any(f"checkpoint of step {STOPPED}" in one and "passed over" in one and said in one for one in told), told
    assert any("resumed from the checkpoint of step 8," in one for one in told)
    assert losses(case) == pytest.approx(losses(cases["undisturbed"]), abs=1e-6)


def test_with_no_whole_checkpoint_left_a_run_starts_again_and_says_so(cases: dict[str, Case]) -> None:
    told = messages(cases["all-gone"])
    assert sum("is damaged and passed over" in one for one in told) == 3
    assert not any("resumed" in one for one in told)
    assert losses(cases["all-gone"]) == pytest.approx(losses(cases["undisturbed"]), abs=1e-6)


def test_a_disk_that_fills_up_in_a_save_costs_that_checkpoint_only(cases: dict[str, Case]) -> None:
    told = messages(cases["full"])
    assert any("checkpoint of step 8 could not be written" in one and "No space left" in one for one in told), told
    assert committed_steps(cases["full"].paths) == [4, 12]
    left = pathlib.Path(cases["full"].paths.checkpoint(8))
    assert not left.exists() or not list(left.iterdir()), "half a checkpoint takes up space that is short"
    assert losses(cases["full"]) == losses(cases["undisturbed"])


def test_a_disk_that_is_full_at_the_last_step_is_told_with_what_follows(cases: dict[str, Case]) -> None:
    earlier, last = [one for one in messages(cases["full"]) if "could not be written" in one]
    assert earlier.endswith("the one before it is kept, and training goes on")
    assert "of step 16" in last and "goes on" not in last and "no step follows" in last and "resume the run" in last


def test_storage_that_stalls_puts_saves_off_and_never_stops_the_training(cases: dict[str, Case]) -> None:
    told = messages(cases["stalled"])
    assert any("checkpoint of step 8 is put off: that of step 4 is still being written" in one for one in told), told
    steps = committed_steps(cases["stalled"].paths)
    assert steps[-1] == STEPS and any(10 <= step < STEPS for step in steps), "saves went on once it was well again"
    assert losses(cases["stalled"]) == losses(cases["undisturbed"])


@pytest.mark.parametrize("name", ["best", "patient"])
def test_the_best_checkpoint_is_kept_and_exported(cases: dict[str, Case], name: str) -> None:
    """Because the spec asks for it, or because early stopping is on, although the run ends with its last step."""
    case = cases[name]
    scores = {one["step"]: one["eval_loss"] for one in read_journal(case.paths.metrics) if "eval_loss" in one}
    assert sorted(scores) == list(range(2, STEPS + 1, 2))
    best = max(scores, key=lambda step: scores[step])
    assert best < STEPS and committed_steps(case.paths) == [best, STEPS]
    assert any(f"taking the best checkpoint, of step {best}" in one for one in messages(case))
    commit = read_commit(case.paths, STEPS)
    assert commit.best is not None and (commit.best.step, commit.best.score) == (best, scores[best])
    assert_exported(case, best)


def test_an_export_that_was_removed_is_made_from_the_best_checkpoint_again(
    cases: dict[str, Case], tmp_path: pathlib.Path
) -> None:
    case = cases["best"]
    best, paths = committed_steps(case.paths)[0], copied(case, tmp_path, "model")
    ended = {"status": Status.SUCCEEDED, "step": STEPS, "exported_step": best, "model_path": case.paths.model}
    write_outcome(paths, Outcome(**ended, ended_at=datetime.datetime.now(datetime.UTC)))
    said: list[str] = []
    export_run(paths.root, say=said.append)
    assert said == [f"out of the checkpoint of step {best}"]
    before, after = (load_file(f"{one.model}/model.safetensors") for one in (case.paths, paths))
    assert before.keys() == after.keys() and all(np.array_equal(before[one], after[one]) for one in before)


def test_a_checkpoint_that_the_run_removes_during_an_export_is_not_damaged(
    cases: dict[str, Case], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = copied(cases["undisturbed"], tmp_path, "model", "outcome.json")
    newest, newer, write = committed_steps(paths)[-1], STEPS + EVERY, to_model._write

    def overtaken(*given: object) -> None:
        if committed_steps(paths)[-1] == newest:
            later = pathlib.Path(paths.checkpoint(newer))
            pathlib.Path(paths.checkpoint(newest)).rename(later)
            commit = later / "commit.json"
            commit.write_text(commit.read_text().replace(f'"step":{newest},', f'"step":{newer},'))
            raise Damaged("no such file")
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(to_model, "_write", overtaken)
    said: list[str] = []
    export_run(paths.root, say=said.append)
    removed = f"the run has removed the checkpoint of step {newest} in the meantime: a newer one is taken"
    assert said == [removed, f"out of the checkpoint of step {newer}"]


def test_an_earlier_export_is_replaced_whole_or_stays(
    cases: dict[str, Case], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with files of two exports would hold a model that no run has trained."""
    paths = copied(cases["undisturbed"], tmp_path, "model", "outcome.json")
    model = pathlib.Path(paths.model)
    model.mkdir()
    earlier = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    for name in earlier:
        (model / name).write_text("{}")
    before = {one.name: one.read_bytes() for one in model.iterdir()}
    kept = tmp_path / "kept"
    pathlib.Path(paths.checkpoints).rename(kept)
    with pytest.raises(DataError, match="nothing to export"):
        export_run(paths.root)
    kept.rename(paths.checkpoints)
    with monkeypatch.context() as patched:
        patched.setattr(to_model, "write_config", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            export_run(paths.root)
    assert before == {one.name: one.read_bytes() for one in model.iterdir()}
    export_run(paths.root)
    assert not list(model.parent.glob("*.new"))
    beside = pathlib.Path(export_run(paths.root, str(tmp_path / "beside")))
    made = {one.name: one.read_bytes() for one in model.iterdir() if one.name != "made_from"}
    assert made == {one.name: one.read_bytes() for one in beside.iterdir()}


def test_a_run_that_learns_its_few_samples_by_heart_says_once_that_it_overfits(cases: dict[str, Case]) -> None:
    case = cases["overfits"]
    scores = {one["step"]: one["eval_loss"] for one in read_journal(case.paths.metrics) if "eval_loss" in one}
    (told,) = [one["data"] for one in read_journal(case.paths.events) if one["kind"] == "remedy"]
    before = {step: score for step, score in scores.items() if step <= told["step"]}
    assert told["remedy"] == "overfitting" and told["best_step"] == min(before, key=lambda step: before[step])
    assert told["loss"] == scores[told["step"]] > told["best_loss"] == scores[told["best_step"]]
    (cost,) = [one["message"] for one in read_journal(case.paths.events) if one["kind"] == "warning"]
    assert f"has a held-out loss of {scores[80]:.4g}, and the lowest was {told['best_loss']:.4g} after step" in cost
    newest = read_commit(case.paths, committed_steps(case.paths)[-1])
    assert newest.trend.found, "a resume does not say it again"


@pytest.mark.parametrize("name", ["early", "early-zero1", "early-zero2"])
def test_early_stopping_ends_a_run_and_exports_the_best_in_every_stage(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    scores = {one["step"]: one["eval_loss"] for one in read_journal(case.paths.metrics) if "eval_loss" in one}
    best, end = max(scores, key=lambda step: scores[step]), max(scores)
    assert end == best + 2 * 2 < STEPS, "two evaluations without a better score"
    assert max(one["step"] for one in read_journal(case.paths.metrics)) == end
    assert committed_steps(case.paths) == [best, end]
    (told,) = [one for one in read_journal(case.paths.events) if one["kind"] == "remedy"]
    assert told["data"]["remedy"] == "early_stopping" and f"step {best}" in told["data"]["cause"]
    assert_exported(case, best)


def test_a_run_that_was_killed_after_early_stopping_exports_the_best_and_trains_no_further(
    cases: dict[str, Case],
) -> None:
    again, end = cases["early-killed-before-its-export"], committed_steps(cases["early"].paths)[-1]
    assert max(one["step"] for one in read_journal(again.paths.metrics)) == end
    assert_exported(again, committed_steps(again.paths)[0])


def assert_exported(case: Case, best: int, of: JobPaths | None = None) -> None:
    """The exported model has the weights of that checkpoint of the run, or of `of`, bit for bit."""
    exported, of = load_file(f"{case.paths.model}/model.safetensors"), of or case.paths
    kept = read_commit(of, best)
    parts = read_parts(of, kept)
    assert set(kept.shapes) <= set(exported)
    for name, shape in kept.shapes.items():
        weights = np.zeros(shape, dtype=np.float32)
        read_slices(of.checkpoint(best), parts, [Read("weight", Slice(name, 0, weights.size), as_bytes(weights))])
        assert np.array_equal(weights, exported[name]), name
