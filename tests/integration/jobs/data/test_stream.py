"""Ray Data and the plain reader give the same bytes, and read nothing before the start."""

from __future__ import annotations

import contextlib
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from jobs.data.order import stream as stream_module
from jobs.data.order.row_order import micro_batches
from jobs.data.order.stream import StepRows, Stream, block_bytes, plain_steps, ray_steps, steps_per_chunk
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import Prepared
from jobs.planning.batching import plan_batching
from jobs.spec.finetune import Spec
from tests.support import tiny
from tests.support.processes import wait_for

MOST_AHEAD_BYTES, STANDS_STILL_S = 48 * 2**20, 4.0  # of a worker
MOST_OF_A_CORE = 0.15  # that Ray Data takes meanwhile


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, Prepared]:
    folder = tmp_path_factory.mktemp("stream")
    model = tiny.save_model(folder / "llama", "llama")
    text = tiny.write_text(folder / "text.jsonl", 3000)
    spec = tiny.spec_of(
        folder, model, text, data__packing=False, train__global_batch_size=7, train__per_device_train_batch_size=2,
        train__max_steps=300,
    )  # fmt: skip
    return spec, prepare(spec, str(model), engine="plain", say=lambda text: None)


def content(steps: list[StepRows]) -> list[Any]:
    return [(step.step, [micro.to_pydict() for micro in step.micros]) for step in steps]


@pytest.mark.parametrize(("num_workers", "start"), [(1, 0), (2, 0), (2, 137), (3, 299)])
def test_both_readers_give_the_same_rows_from_any_start(
    job: tuple[Spec, Prepared], local_ray: None, monkeypatch: pytest.MonkeyPatch, num_workers: int, start: int
) -> None:
    monkeypatch.setattr(stream_module, "_LEAST_RAY_BYTES", 0)
    spec, prepared = job
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"num_workers": num_workers})})
    seen: list[set[int]] = [set() for _ in range(300)]
    for worker in range(num_workers):
        stream = Stream(prepared.root, spec, worker)
        plain = content(list(plain_steps(stream, start)))
        assert plain == content(list(ray_steps(stream, start)))
        assert [step for step, _ in plain] == list(range(start, 300))
        for step, micros in plain:
            for micro in micros:
                ids = {sample for row in micro["sample_ids"] for sample in row}
                assert not ids & seen[step]
                seen[step] |= ids
    assert all(len(ids) == 7 for ids in seen[start:])


@pytest.mark.parametrize("start", [0, 137])
def test_little_is_read_without_ray_data(
    job: tuple[Spec, Prepared], monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    def too_much(*_: Any) -> Iterator[Any]:
        raise AssertionError("Ray Data starts")

    monkeypatch.setattr(stream_module, "_ray_tables", too_much)
    spec, prepared = job
    stream = Stream(prepared.root, spec, 1)
    assert content(list(ray_steps(stream, start))) == content(list(plain_steps(stream, start)))
    expected = sum(8 * micro["input_ids"].nbytes // 4 for step in plain_steps(stream, 0) for micro in step.micros)
    assert stream.open().bytes_from(0) == pytest.approx(expected, rel=0.1)
    monkeypatch.setattr(stream_module, "_LEAST_RAY_BYTES", expected / 2)
    with pytest.raises(AssertionError, match="Ray Data starts"):
        list(ray_steps(stream, 0))
    late = 200  # a third is left
    assert content(list(ray_steps(stream, late))) == content(list(plain_steps(stream, late)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a log of Ray's own stays open
def test_what_is_read_ahead_is_bounded_and_waits_for_as_long_as_training_takes(
    job: tuple[Spec, Prepared], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only one in which training stands still while Ray Data reads: neither memory nor CPU time grow."""
    import ray.data

    monkeypatch.setattr(stream_module, "_LEAST_RAY_BYTES", 0)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 1.0)
    spec, prepared = job
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"max_steps": 1_000_000})})
    readers: list[Any] = [
        ray_steps(Stream(prepared.root, spec, worker), 0) for worker in range(spec.resources.num_workers)
    ]
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.callback(reader.close)
            for _ in range(2 * steps_per_chunk(plan_batching(spec))):  # the second chunk is from Ray Data
                next(reader)
        wait_for(lambda: bytes_in_the_object_store() > 2**20, "something is read ahead", 240.0)
        held, since, busy_s = 0, time.monotonic(), seconds_of_ray_data()
        while time.monotonic() - since < STANDS_STILL_S and held < MOST_AHEAD_BYTES * len(readers):
            time.sleep(0.2)
            now = bytes_in_the_object_store()
            if now != held:
                held, since, busy_s = now, time.monotonic(), seconds_of_ray_data()
        assert held < MOST_AHEAD_BYTES * len(readers)
        assert seconds_of_ray_data() - busy_s < MOST_OF_A_CORE * (time.monotonic() - since) * len(readers)
        for reader in readers:
            for _ in range(15_000):  # more than was read ahead
                next(reader)


@pytest.mark.parametrize(
    ("longest_row", "block"), [(64, 4 * 2**20), (4096, 4 * 73 * 4096 * 8), (1_000_000, 128 * 2**20)]
)
def test_a_block_of_ray_is_a_chunk_within_bounds(job: tuple[Spec, Prepared], longest_row: int, block: int) -> None:
    spec, _ = job
    assert block_bytes(plan_batching(spec), longest_row) == block


def seconds_of_ray_data() -> float:
    """Return the CPU time of the scheduling loops of this process's data sets."""
    loops = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor-")}
    assert loops
    return sum(thread.user_time + thread.system_time for thread in psutil.Process().threads() if thread.id in loops)


def bytes_in_the_object_store() -> int:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    here = get_state_from_address(ray.get_runtime_context().gcs_address)  # not another Ray of this machine
    return int(get_memory_info_reply(here).store_stats.object_store_bytes_used)


def test_rows_are_those_of_the_plan(job: tuple[Spec, Prepared]) -> None:
    spec, prepared = job
    stream = Stream(prepared.root, spec, 1)
    opened = stream.open()
    for step in list(plain_steps(stream, 0))[:20]:
        dealt = micro_batches(opened.plan.rows_of_step(step.step), 2, opened.batching.accumulation, 2)[1]
        for rows, table in zip(dealt, step.micros, strict=True):
            assert table.equals(prepared.split("train").read_rows(rows))


def test_nothing_before_the_start_is_read(job: tuple[Spec, Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, prepared = job
    opened = Stream(prepared.root, spec, 0).open()
    asked: list[np.ndarray[Any, Any]] = []
    real = opened.split.read_rows

    def noting(rows: np.ndarray[Any, Any]) -> Any:
        asked.append(rows)
        return real(rows)

    monkeypatch.setattr(opened.split, "read_rows", noting)
    list(opened.chunks(200, 300))
    planned = np.concatenate([opened.plan.rows_of_step(step) for step in range(200, 300)])
    assert set(np.concatenate(asked)) <= set(planned)
    assert 300 < len(np.concatenate(asked)) < 500  # one worker's half of 100 steps of 7


def test_damaged_data_is_an_error_and_no_silent_end(job: tuple[Spec, Prepared], tmp_path: pathlib.Path) -> None:
    import shutil

    from cluster.errors import DataError

    spec, prepared = job
    root = pathlib.Path(prepared.root)
    shutil.copytree(root.parent, tmp_path / "copy")
    next((tmp_path / "copy").glob("*/rows/shard-00000.arrow")).unlink()
    with pytest.raises(DataError, match=r"shard-00000\.arrow"):
        list(plain_steps(Stream(str(tmp_path / "copy" / root.name), spec, 0), 0))


def test_a_reader_that_loses_rows_stops_the_run(job: tuple[Spec, Prepared]) -> None:
    spec, prepared = job
    opened = Stream(prepared.root, spec, 0).open()
    tables = list(opened.chunks(0, 300))
    with pytest.raises(RuntimeError, match="the reader gave"):
        list(opened.steps([tables[0], *tables[2:]], 0))
    with pytest.raises(RuntimeError, match="the reader gave"):
        list(opened.steps(tables[:1], 0))
