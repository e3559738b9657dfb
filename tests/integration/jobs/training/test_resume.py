"""A run that is interrupted and goes on, on any number of workers, is the run that was never interrupted.

Dropout, two groups with different decay, accumulation and clipping are on; the interruptions lie inside the warmup and
inside the second epoch.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from jobs.data.order.digest_chain import EMPTY_CHAIN, extended, from_hex, row_digests, step_digest
from jobs.data.order.stream import step_plan
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.storage.journal import read_journal
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang

FIRST_STOP, SECOND_STOP, STEPS = 3, 14, 26


def spec_for(folder: pathlib.Path, workshop: pathlib.Path, **changes: Any) -> Any:
    return tiny.spec_of(
        folder, workshop / "gpt2", workshop / "text.jsonl",
        **{
            "data__packing": False, "train__max_steps": STEPS, "train__warmup_ratio": 0.2, "train__weight_decay": 0.1,
            "train__max_grad_norm": 0.5, "train__global_batch_size": 8, "train__per_device_train_batch_size": 2,
            "train__learning_rate": 2e-3, "eval__eval_on_start": False,
            **changes,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny.save_model(folder / "gpt2", "gpt2", dropout=0.1)
    tiny.write_text(folder / "text.jsonl", 90)
    return folder


def on(case: Case, name: str, **changes: Any) -> Case:
    """The same run copied, to be gone on with under another spec."""
    shutil.copytree(case.paths.root, case.folder / name)
    return dataclasses.replace(case, name=name, stop_at=None, **changes)


def workers(spec: Any, number: int, **train: Any) -> Any:
    changed = spec.model_copy(update={"resources": spec.resources.model_copy(update={"num_workers": number})})
    return changed.model_copy(update={"train": changed.train.model_copy(update=train)})


@dataclasses.dataclass(frozen=True)
class Runs:
    undisturbed: Case
    interrupted: Case
    on_one: Case
    on_three: Case
    other_zero: Case
    kinds: dict[str, tuple[Case, Case]]  # undisturbed, interrupted


KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"train__bf16": True},
    "bf16 in stage 1": {"train__bf16": True, "train__zero__stage": 1},
    "stage 2": {"train__zero__stage": 2},
    "packed": {"data__packing": True},
    "nothing persistent": {"train__zero__param_persistence_threshold": 0},
}
KIND_STEPS, KIND_STOP = 10, 5


@pytest.fixture(scope="module")
def runs(workshop: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs, in as few gangs as can be: each start costs seconds."""
    folder = tmp_path_factory.mktemp("runs")
    spec = spec_for(folder, workshop)
    undisturbed = case_of(folder, "undisturbed", spec)
    interrupted = case_of(folder, "interrupted", spec, FIRST_STOP)
    again = dataclasses.replace(interrupted, stop_at=SECOND_STOP)
    kinds = {}
    for kind, changes in KINDS.items():
        other = spec_for(folder, workshop, train__max_steps=KIND_STEPS, **changes)
        kinds[kind] = (case_of(folder, kind, other), case_of(folder, f"{kind}, interrupted", other, KIND_STOP))
    stopped = [case for _, case in kinds.values()]
    run_gang(folder, 2, [undisturbed, interrupted, *[case for case, _ in kinds.values()], *stopped, again])
    on_one, on_three = on(interrupted, "on_one"), on(interrupted, "on_three")
    on_one = dataclasses.replace(on_one, spec=workers(spec, 1))
    on_three = dataclasses.replace(on_three, spec=workers(spec, 3))
    stage_1 = workers(spec, 2, zero=spec.train.zero.model_copy(update={"stage": 1}))
    other_zero = dataclasses.replace(on(interrupted, "other_zero"), spec=stage_1)
    going_on = [dataclasses.replace(case, stop_at=None) for case in [interrupted, *stopped]]
    run_gang(folder, 2, [*going_on, other_zero])
    run_gang(folder, 1, [on_one])
    run_gang(folder, 3, [on_three])
    return Runs(undisturbed, interrupted, on_one, on_three, other_zero, kinds)


def by_step(case: Case, column: str) -> list[Any]:
    records = {record["step"]: record[column] for record in read_journal(case.paths.metrics)}
    assert sorted(records) == list(range(1, STEPS + 1))
    return [records[step] for step in sorted(records)]


def test_clipping_was_active_and_two_epochs_were_touched(runs: Runs) -> None:
    """The time is that of all runs of the file: interrupted ones go on with other workers, stages and precisions."""
    assert min(by_step(runs.undisturbed, "grad_norm")) > 0.5
    epochs = by_step(runs.undisturbed, "epoch")
    assert epochs[FIRST_STOP] < 1 < epochs[SECOND_STOP] < 2


def test_two_interruptions_change_nothing(runs: Runs) -> None:
    assert by_step(runs.interrupted, "loss") == pytest.approx(by_step(runs.undisturbed, "loss"), abs=1e-6)
    assert by_step(runs.interrupted, "grad_norm") == pytest.approx(by_step(runs.undisturbed, "grad_norm"), rel=1e-5)
    assert by_step(runs.interrupted, "learning_rate") == by_step(runs.undisturbed, "learning_rate")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_engine_comes_back_as_it_was(runs: Runs, kind: str) -> None:
    undisturbed, interrupted = runs.kinds[kind]
    assert KIND_STOP in committed_steps(interrupted.paths)
    for column in ("loss", "grad_norm"):
        assert interrupted.record(column) == pytest.approx(undisturbed.record(column), rel=1e-6), column


@pytest.mark.parametrize("other", ["on_one", "on_three", "other_zero"])
def test_another_number_of_workers_or_zero_stage_goes_on_alike(runs: Runs, other: str) -> None:
    """Twelve steps are left after the second stop."""
    case = getattr(runs, other)
    assert by_step(case, "loss") == pytest.approx(by_step(runs.undisturbed, "loss"), abs=1e-4)
    assert by_step(case, "grad_norm") == pytest.approx(by_step(runs.undisturbed, "grad_norm"), rel=2e-3)


def test_each_sample_of_an_epoch_is_trained_on_exactly_once(runs: Runs) -> None:
    """The chain in the metrics is built from the rows that the workers had in hand, here held against the manifest."""
    split = runs.undisturbed.prepared.split("train")
    plan, digests = step_plan(runs.undisturbed.spec, split), row_digests(split.index.sample_ids)
    chain, seen = EMPTY_CHAIN, []
    for step in range(STEPS):
        rows = plan.rows_of_step(step)
        chain = extended(chain, step_digest(digests[rows], np.arange(len(rows))))
        for case in (runs.undisturbed, runs.interrupted, runs.on_one, runs.on_three):
            assert from_hex(by_step(case, "chain")[step]) == chain
        seen += rows.tolist()
    assert sorted(seen[: len(split)]) == list(range(len(split)))


def test_a_checkpoint_says_what_it_holds(runs: Runs) -> None:
    steps = committed_steps(runs.interrupted.paths)
    assert steps[-1] == STEPS and SECOND_STOP in steps
    commit = read_commit(runs.interrupted.paths, SECOND_STOP)
    assert commit.optimizer_step == SECOND_STOP and commit.num_workers == 2
    assert commit.loss == by_step(runs.interrupted, "loss")[SECOND_STOP - 1]
