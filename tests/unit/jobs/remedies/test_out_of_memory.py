"""The ladder of changes after a run ran out of memory: which comes next, what it keeps, and where it ends."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StorageError
from jobs.planning import plan_batching, with_workers, worker_numbers
from jobs.remedies.out_of_memory import (
    FIELDS,
    Change,
    Rung,
    Shortage,
    Where,
    fields_of_batch,
    format_tried,
    next_change,
    with_change,
    with_remedies,
)
from jobs.run.paths import JobPaths
from jobs.run.remedies import Remedy, next_time, read_remedies, write_remedies
from jobs.spec.finetune import Spec
from tests.support import tiny

ON_GPUS = {"resources__gpus_per_worker": 1}


def spec_of(**changes: Any) -> Spec:
    spec: Spec = tiny.spec_of(Path("runs"), Path("model"), Path("text.jsonl"), **changes)
    return spec


def ladder(spec: Spec, where: Where, *, of_host: bool = False, checkpointing: bool = True) -> list[str]:
    """All changes until none is left, as `field=value`."""
    steps = []
    while (change := next_change(spec, Shortage(where, of_host), checkpointing=checkpointing)) is not None:
        steps.append(f"{change.field.rpartition('.')[2]}={change.after}")
        spec = with_change(spec, change)
        assert len(steps) < 50
    return steps


MICRO = [f"per_device_train_batch_size={size}" for size in (4, 2, 1)]
EVAL = [f"per_device_eval_batch_size={size}" for size in (4, 2, 1)]
OFFLOADS = ["offload_optimizer=cpu", "offload_param=cpu"]


@pytest.mark.parametrize(
    ("given", "where", "steps"),
    [
        ({}, Where.TRAINING, [*MICRO, "gradient_checkpointing=True"]),
        (ON_GPUS, Where.TRAINING, [*MICRO, "gradient_checkpointing=True", *OFFLOADS]),
        ({**ON_GPUS, "train__zero__stage": 2}, Where.TRAINING, [*MICRO, "gradient_checkpointing=True", OFFLOADS[0]]),
        ({**ON_GPUS, "train__gradient_checkpointing": True}, Where.TRAINING, [*MICRO, *OFFLOADS]),
        (ON_GPUS, Where.LOADING, OFFLOADS),
        (ON_GPUS, Where.EXPORT, OFFLOADS),
        ({}, Where.LOADING, []),
        ({}, Where.EXPORT, []),
        ({}, Where.UPDATE, [*MICRO, "gradient_checkpointing=True"]),
        (ON_GPUS, Where.UPDATE, [*OFFLOADS, *MICRO, "gradient_checkpointing=True"]),
        ({}, Where.EVALUATION, EVAL),
        (ON_GPUS, Where.EVALUATION, [*EVAL, *OFFLOADS]),
    ],
)
def test_the_rungs_come_in_their_order_where_they_can_help(
    given: dict[str, Any], where: Where, steps: list[str]
) -> None:
    assert ladder(spec_of(train__per_device_train_batch_size=8, **given), where) == steps


def test_a_model_without_checkpointing_skips_that_rung() -> None:
    assert ladder(spec_of(train__per_device_train_batch_size=2), Where.TRAINING, checkpointing=False) == [MICRO[2]]


def test_no_change_helps_the_host_of_gpu_workers_and_every_change_helps_that_of_cpu_workers() -> None:
    assert ladder(spec_of(train__per_device_train_batch_size=8, **ON_GPUS), Where.TRAINING, of_host=True) == []
    assert ladder(spec_of(train__per_device_train_batch_size=8), Where.TRAINING, of_host=True)[:3] == MICRO


def test_an_evaluation_is_halved_from_the_rows_that_it_really_had() -> None:
    """The limit of its logits may have made the batch smaller than the spec allows."""
    change = next_change(spec_of(eval__per_device_eval_batch_size=64), Shortage(Where.EVALUATION, False, 6))
    assert change == Change(Rung.EVAL_BATCH, 64, 3)
    assert next_change(spec_of(eval__per_device_eval_batch_size=64), Shortage(Where.EVALUATION, False, 1)) is None


@pytest.mark.parametrize(
    "given",
    [
        {"train__gradient_accumulation_steps": 3},
        {},
        {"train__global_batch_size": 30},
        {"train__global_batch_size": 30, "train__gradient_accumulation_steps": 3},
        {"train__global_batch_tokens": 64 * 30},
    ],
)
def test_the_global_batch_stays_whatever_the_spec_gives(given: dict[str, Any]) -> None:
    """5 is odd: no whole accumulation of 2 rows gives the rows of 5 times 3."""
    spec = spec_of(train__per_device_train_batch_size=5, **given)
    rows = plan_batching(spec).rows
    for micro_batch in (2, 1):
        change = next_change(spec, Shortage(Where.TRAINING, False))
        assert change is not None
        spec = with_change(spec, change)
        batching = plan_batching(spec)
        assert (batching.rows, batching.per_device) == (rows, micro_batch)
    assert Spec.model_validate(spec.model_dump()) == spec


def test_an_elastic_job_keeps_its_rows_on_every_number_of_workers() -> None:
    spec = spec_of(
        train__per_device_train_batch_size=4, train__global_batch_size=16, resources__num_workers={"min": 1, "max": 4}
    )
    change = next_change(spec, Shortage(Where.TRAINING, False))
    assert change is not None
    for number in worker_numbers(spec):
        on_these = with_change(with_workers(spec, number), change)
        assert plan_batching(on_these).rows == 16 and plan_batching(on_these).num_workers == number
    assert set(worker_numbers(spec)) <= set(worker_numbers(with_change(spec, change)))


@pytest.mark.parametrize(
    ("given", "also"),
    [
        ({}, {"train.global_batch_size": 16}),
        (
            {"train__gradient_accumulation_steps": 2},
            {"train.global_batch_size": 32, "train.gradient_accumulation_steps": None},
        ),
        ({"train__global_batch_size": 32}, {}),
    ],
)
def test_the_advice_for_a_new_run_keeps_its_rows(given: dict[str, Any], also: dict[str, Any]) -> None:
    spec = spec_of(train__per_device_train_batch_size=8, resources__num_workers=2, **given)
    rows, remedies = plan_batching(spec).rows, list[Remedy]()
    for _ in range(2):
        change = next_change(spec, Shortage(Where.TRAINING, False))
        assert change is not None
        remedies.append(remedy(change.rung, change.before, change.after, also=fields_of_batch(spec, change)))
        spec = with_change(spec, change)
    said = ", ".join(f"{name}: {json.dumps(value)}" for name, value in also.items())
    assert next_time(remedies) == f"set train.per_device_train_batch_size: 2{said and f', {said}'} in the spec"
    written = spec_of(train__per_device_train_batch_size=8, resources__num_workers=2, **given)
    for name, value in {"train.per_device_train_batch_size": 2, **also}.items():
        written = written.with_value(name, value)
    assert plan_batching(written).rows == rows


def remedy(rung: Rung, before: Any, after: Any, **more: Any) -> Remedy:
    given: dict[str, Any] = {
        "at": datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC), "cause": "rank 1 ran out", "action": "less",
        "where": "training", "rung": rung, "field": FIELDS[rung], "before": before, "after": after,
        "gpus_per_worker": 0, "from_step": 4, "steps_again": 3, "seconds": 11.2,
    }  # fmt: skip
    return Remedy(**{**given, **more})


EARLIER = (
    remedy(Rung.MICRO_BATCH, 8, 4),
    remedy(Rung.MICRO_BATCH, 4, 2),
    remedy(Rung.CHECKPOINTING, False, True),
)


@pytest.mark.parametrize(
    ("given", "micro_batch", "applied"),
    [
        ({"train__per_device_train_batch_size": 8}, 2, [(8, 2), (False, True)]),
        ({"train__per_device_train_batch_size": 4}, 2, [(4, 2), (False, True)]),
        ({"train__per_device_train_batch_size": 16}, 16, [(False, True)]),
        ({"train__per_device_train_batch_size": 8, **ON_GPUS}, 8, []),
    ],
)
def test_a_later_attempt_begins_with_the_changes_unless_its_spec_or_its_workers_are_others(
    given: dict[str, Any], micro_batch: int, applied: list[tuple[Any, Any]]
) -> None:
    spec, changes = with_remedies(spec_of(**given), EARLIER)
    assert [(one.before, one.after) for one in changes] == applied
    assert spec.train.per_device_train_batch_size == micro_batch
    assert spec.train.gradient_checkpointing is bool(applied)


def test_a_user_who_follows_the_advice_is_not_changed_again() -> None:
    written = spec_of(train__per_device_train_batch_size=2, train__gradient_checkpointing=True)
    assert next_time(EARLIER) == (
        "set train.per_device_train_batch_size: 2, train.gradient_checkpointing: true in the spec"
    )
    assert with_remedies(written, EARLIER) == (written, ())


def test_the_changes_are_kept_in_the_run(tmp_path: Path) -> None:
    paths = JobPaths(str(tmp_path))
    assert read_remedies(paths) == () and next_time(()) is None
    write_remedies(paths, EARLIER)
    assert read_remedies(paths) == EARLIER
    assert format_tried(EARLIER) == "train.per_device_train_batch_size 4, 2; train.gradient_checkpointing true"
    (tmp_path / "remedies.json").write_text('{"version": 2, "remedies": []}')
    with pytest.raises(StorageError, match="newer release"):
        read_remedies(paths)
