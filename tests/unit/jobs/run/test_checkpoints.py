"""A checkpoint on storage: written in slices, read by any number of workers, taken for whole only when it is."""

from __future__ import annotations

import pathlib
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from cluster.errors import StorageError
from jobs.run.attempts import newest_start, write_attempt
from jobs.run.checkpoints import (
    KINDS,
    Commit,
    Part,
    Read,
    Slice,
    commit_path,
    committed_steps,
    entry_of,
    leftovers,
    newest_step,
    passed_over,
    plan_reads,
    read_commit,
    read_parts,
    read_slices,
    to_remove,
)
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.storage import tensor_file as shardfile
from jobs.storage.tensor_file import Damaged, ShardFile, Tensor, Want, as_bytes, read_ranges, write_shard


def tensor(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, "F32", values.shape, as_bytes(values))


def shares(numel: int, workers: int) -> list[tuple[int, int]]:
    """ZeRO-3's cut: even, the last ones short or without anything."""
    share = -(-numel // workers)
    return [(low, max(0, min(share, numel - low))) for low in (share * rank for rank in range(workers))]


def write_parts(folder: pathlib.Path, state: dict[str, dict[str, np.ndarray]], workers: int) -> list[Part]:
    """`state[kind][parameter]`, cut over workers."""
    parts = []
    for rank in range(workers):
        cut = {
            name: shares(len(values), workers)[rank]
            for name, values in state[KINDS[0]].items()
            if shares(len(values), workers)[rank][1]
        }
        tensors = [
            tensor(f"{kind}:{name}", state[kind][name][start : start + numel])
            for kind in KINDS
            for name, (start, numel) in cut.items()
        ]
        file = write_shard(str(folder), f"rank-{rank}-of-{workers}.safetensors", tensors)
        parts.append(Part(rank=rank, slices=tuple(Slice(name, *where) for name, where in cut.items()), file=file))
    return parts


def random_state(numels: list[int], seed: int) -> dict[str, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    return {
        kind: {f"p{number}": draw.standard_normal(numel, dtype=np.float32) for number, numel in enumerate(numels)}
        for kind in KINDS
    }


@given(
    numels=st.lists(st.integers(1, 400), min_size=1, max_size=5), before=st.integers(1, 9), now=st.integers(1, 9),
    chunk=st.sampled_from([64, 100, 2**20]),
)  # fmt: skip
def test_what_some_workers_wrote_any_number_reads(
    tmp_path_factory: pytest.TempPathFactory, numels: list[int], before: int, now: int, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardfile, "CHUNK_BYTES", chunk)
        state = random_state(numels, before * 10 + now)
        parts = write_parts(folder, state, before)
        for rank in range(now):
            memory = {}
            for kind in KINDS:
                for name, values in state[kind].items():
                    start, numel = shares(len(values), now)[rank]
                    memory[kind, Slice(name, start, numel)] = np.full(numel, np.nan, dtype=np.float32)
            read_slices(str(folder), parts, [Read(kind, cut, as_bytes(into)) for (kind, cut), into in memory.items()])
            for (kind, cut), into in memory.items():
                assert np.array_equal(into, state[kind][cut.parameter][cut.start : cut.start + cut.numel])


def test_the_files_are_safetensors(tmp_path: pathlib.Path) -> None:
    state = random_state([5, 1000], 1)
    write_parts(tmp_path, state, 2)
    halves = [load_file(tmp_path / f"rank-{rank}-of-2.safetensors") for rank in range(2)]
    for kind in KINDS:
        for name, values in state[kind].items():
            assert np.array_equal(np.concatenate([half[f"{kind}:{name}"] for half in halves]), values)


def test_only_what_is_asked_for_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shardfile, "CHUNK_BYTES", 1024)
    values = np.arange(100_000, dtype=np.float32)
    file = write_shard(str(tmp_path), "a.safetensors", [tensor("weight:p", values)])
    read: list[int] = []
    real = storage.read_range

    def counting(path: str, begin: int, end: int) -> bytes:
        read.append(end - begin)
        return real(path, begin, end)

    monkeypatch.setattr(storage, "read_range", counting)
    into = np.zeros(300, dtype=np.float32)
    read_ranges(str(tmp_path), file, [Want(file.offsets["weight:p"] + 4 * 50_000, as_bytes(into))])
    assert np.array_equal(into, values[50_000:50_300])
    assert sum(read) <= 3 * 1024


@pytest.mark.parametrize("where", [0, 9, 70, 2000, -1])
def test_a_flipped_bit_is_found(tmp_path: pathlib.Path, where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shardfile, "CHUNK_BYTES", 1024)
    values = np.arange(1000, dtype=np.float32)
    file = write_shard(str(tmp_path), "a.safetensors", [tensor("weight:p", values)])
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[where] ^= 4
    (tmp_path / "a.safetensors").write_bytes(content)
    into = np.zeros(1000, dtype=np.float32)
    with pytest.raises(Damaged, match="other bytes than were written"):
        read_ranges(str(tmp_path), file, [Want(file.offsets["weight:p"], as_bytes(into))])


def test_a_file_that_is_cut_off_or_gone_is_found(tmp_path: pathlib.Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    file = write_shard(str(tmp_path), "a.safetensors", [tensor("weight:p", values)])
    want = [Want(file.offsets["weight:p"], as_bytes(np.zeros(1000, dtype=np.float32)))]
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-1])
    with pytest.raises(Damaged, match="shorter than"):
        read_ranges(str(tmp_path), file, want)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(Damaged, match="no such file"):
        read_ranges(str(tmp_path), file, want)


def test_elements_that_no_part_holds_are_missed() -> None:
    part = Part(
        rank=0, slices=(Slice("p", 0, 5),), file=ShardFile(name="a", bytes=9, checksums=(), offsets={"weight:p": 0})
    )
    with pytest.raises(Damaged, match="holds 5 of 7 elements of p"):
        plan_reads([Read("weight", Slice("p", 0, 7), as_bytes(np.zeros(7, dtype=np.float32)))], [part])


def commit_of(paths: JobPaths, step: int, *parts: Part) -> Commit:
    entries = []
    for part in parts:
        content = part.model_dump_json().encode()
        folder = pathlib.Path(paths.checkpoint(step))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part.rank}.json").write_bytes(content)
        entries.append(entry_of(f"{part.rank}.json", content))
    return Commit(
        step=step, num_workers=len(parts), parts=tuple(entries), shapes={}, bytes=1, optimizer_step=step,
        precision="fp32", per_device_train_batch_size=1,
        loss=1.0, metrics={}, metrics_before={}, chain="0" * 16, data_fingerprint="f",
    )  # fmt: skip


def put_commit(paths: JobPaths, commit: Commit) -> pathlib.Path:
    file = pathlib.Path(commit_path(paths, commit.step))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(commit.model_dump_json())
    return file


def test_a_checkpoint_exists_once_its_marker_does(tmp_path: pathlib.Path) -> None:
    paths = JobPaths(str(tmp_path))
    assert newest_step(paths) == 0
    put_commit(paths, commit_of(paths, 10))
    commit_of(paths, 20, Part(rank=0, slices=(), file=ShardFile(name="a", bytes=0, checksums=(), offsets={})))
    assert committed_steps(paths) == [10] and newest_step(paths) == 10
    assert read_commit(paths, 10).loss == 1.0


def test_a_checkpoint_that_the_newest_group_has_passed_over_counts_again_once_it_is_rewritten(
    tmp_path: pathlib.Path,
) -> None:
    paths = JobPaths(str(tmp_path))
    write_attempt(paths, 0, 2, passed_over(paths, 0))
    for step in (20, 30):
        put_commit(paths, commit_of(paths, step))
    assert newest_step(paths) == 30
    write_attempt(paths, 20, 2, passed_over(paths, 20))
    assert newest_step(paths) == 20 and newest_start(paths) == 20
    put_commit(paths, commit_of(paths, 24))
    assert newest_step(paths) == 24 and committed_steps(paths) == [20, 24, 30]
    put_commit(paths, commit_of(paths, 30).model_copy(update={"loss": 0.5}))
    assert newest_step(paths) == 30
    write_attempt(paths, 0, 2, passed_over(paths, 0))
    assert newest_step(paths) == 0, "all are damaged"


def test_a_marker_that_cannot_be_read_is_passed_over_until_it_is_rewritten(tmp_path: pathlib.Path) -> None:
    paths = JobPaths(str(tmp_path))
    file = put_commit(paths, commit_of(paths, 30))
    file.unlink()
    file.mkdir()
    write_attempt(paths, 0, 2, passed_over(paths, 0))
    assert committed_steps(paths) == [30] and newest_step(paths) == 0
    file.rmdir()
    put_commit(paths, commit_of(paths, 30))
    assert newest_step(paths) == 30


def test_a_marker_that_was_cut_off_and_a_description_of_another_write_are_damage(tmp_path: pathlib.Path) -> None:
    paths = JobPaths(str(tmp_path))
    part = Part(rank=0, slices=(), file=ShardFile(name="a", bytes=0, checksums=(), offsets={}))
    commit = commit_of(paths, 10, part)
    file = put_commit(paths, commit)
    assert read_parts(paths, commit) == (part,)
    (pathlib.Path(paths.checkpoint(10)) / "0.json").write_bytes(part.model_dump_json().encode() + b" ")
    with pytest.raises(Damaged, match="other bytes"):
        read_parts(paths, commit)
    file.write_text(file.read_text()[:40])
    with pytest.raises(Damaged):
        read_commit(paths, 10)


def test_a_newer_format_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    paths = JobPaths(str(tmp_path))
    file = put_commit(paths, commit_of(paths, 10))
    file.write_text(file.read_text().replace('"version":2', '"version":3'))
    with pytest.raises(StorageError, match="newer release") as raised:
        read_commit(paths, 10)
    assert not isinstance(raised.value, Damaged)


def test_the_newest_and_the_best_are_kept() -> None:
    assert to_remove([10, 20, 30, 40], 2, None, 40) == [10, 20]
    assert to_remove([10, 20, 30, 40], 2, 10, 40) == [20]
    assert to_remove([10, 20], 2, 10, 20) == []
    assert to_remove([], 2, None, 0) == []


def test_what_was_passed_over_never_costs_a_new_checkpoint_its_place() -> None:
    assert to_remove([5, 100], 1, None, 5) == []
    assert to_remove([5, 10, 100], 1, None, 10) == [5]
    assert to_remove([95, 100, 105], 1, None, 105) == [95, 100]


def test_what_was_never_finished_goes_once_something_newer_is_whole() -> None:
    assert leftovers([10, 20, 30], [20]) == [10]
    assert leftovers([10, 20], []) == []


def test_a_full_disk_leaves_no_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(data: object, value: int = 0) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zlib, "crc32", full)
    with pytest.raises(StorageError, match="No space left"):
        write_shard(str(tmp_path), "a.safetensors", [tensor("weight:p", np.zeros(10, dtype=np.float32))])
    assert list(tmp_path.iterdir()) == []
