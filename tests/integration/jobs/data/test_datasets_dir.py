"""Directories as sources, above all those that Hugging Face `datasets` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from cluster.errors import DataError
from jobs.data.sources.patterns import expand
from jobs.data.sources.records import Record, RecordReader

pytestmark = pytest.mark.usefixtures("own_protocols")

ROWS = [{"text": f"row {number}", "label": number % 2} for number in range(2500)]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def dataset() -> Dataset:
    return Dataset.from_list(ROWS, Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])}))


def rows_of(source: str) -> list[Any]:
    return [row.value for file in expand(source) for row in RecordReader(file) if isinstance(row, Record)]


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_a_saved_dataset_gives_its_rows_in_order(tmp_path: Path, shards: int) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=shards)
    assert len(expand(f"{tmp_path}/saved/")) == shards
    assert rows_of(f"{tmp_path}/saved") == ROWS
    (first, *_) = expand(f"{tmp_path}/saved")
    reader = RecordReader(first)
    seen = [reader.position for _ in reader]
    assert seen == sorted(seen) and reader.position == reader.size and len(set(seen)) >= (8 if shards == 1 else 1)


def test_the_order_is_that_of_the_state_and_other_files_are_left_out(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=3)
    names = [f"data-0000{number}-of-00003.arrow" for number in (2, 0)]
    change(tmp_path / "saved" / "state.json", _data_files=[{"filename": name} for name in names])
    assert expand(f"{tmp_path}/saved") == tuple(f"{tmp_path}/saved/{name}" for name in names)


def test_a_saved_dataset_is_read_from_a_url(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/saved/", "/hf/saved/", recursive=True)
    assert rows_of("memory://hf/saved") == ROWS


def test_rows_that_were_chosen_or_shuffled_are_those_that_were_saved(tmp_path: Path) -> None:
    dataset().select([5, 3]).save_to_disk(tmp_path / "saved")
    assert rows_of(f"{tmp_path}/saved") == [ROWS[5], ROWS[3]]


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    dataset().select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="without rows"):
        expand(f"{tmp_path}/saved")


def test_chats_pass_as_lists_of_dicts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    Dataset.from_list([{"messages": turns}] * 3).save_to_disk(tmp_path / "saved")
    assert rows_of(f"{tmp_path}/saved") == [{"messages": turns}] * 3


def test_a_dataset_dict_is_refused_with_the_names_of_its_splits(tmp_path: Path) -> None:
    DatasetDict({"train": dataset(), "test": dataset()}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=rf"name one, of {tmp_path}/saved/train, {tmp_path}/saved/test$"):
        expand(f"{tmp_path}/saved")
    assert rows_of(f"{tmp_path}/saved/train") == ROWS
    with pytest.raises(DataError, match=rf"name one, of {tmp_path}/saved/test, {tmp_path}/saved/train$"):
        expand(str(tmp_path))


@pytest.mark.parametrize("field", ["_indices_files", "_indices_data_files"])
def test_a_dataset_with_an_index_of_rows_is_refused(tmp_path: Path, field: str) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    change(tmp_path / "saved" / "state.json", **{field: [{"filename": "indices.arrow"}]})
    with pytest.raises(DataError, match=r"flatten_indices\(\)\.save_to_disk"):
        expand(f"{tmp_path}/saved")


def test_a_saved_dataset_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    state = tmp_path / "saved" / "state.json"
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"names data-00001-of-00002\.arrow, which is not there"):
        expand(f"{tmp_path}/saved")
    for files in (None, ["x"], 5):
        change(state, _data_files=files)
        with pytest.raises(DataError, match=r"state\.json names no data files"):
            expand(f"{tmp_path}/saved")
    state.write_text("{")
    with pytest.raises(DataError, match=r"state\.json is not JSON"):
        expand(f"{tmp_path}/saved")


def test_links_in_a_directory_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs" / "0123", "{}")
    data = tmp_path / "data"
    write(data / "a" / "x.csv", "text\n")
    (data / "a" / "back").symlink_to(data)
    (data / "x.jsonl").symlink_to(blob)
    (data / "gone.jsonl").symlink_to(tmp_path / "gone")
    assert expand(str(data)) == (f"{data}/a/x.csv", f"{data}/gone.jsonl", f"{data}/x.jsonl")
    with pytest.raises(DataError, match="no such file"):
        RecordReader(f"{data}/gone.jsonl")


def test_a_glob_means_files_and_a_path_all_files_of_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "a.csv" / "part-0.csv", "text\n")
    write(tmp_path / "b.csv", "text\n")
    assert expand(f"{tmp_path}/b*.csv") == (f"{tmp_path}/b.csv",)
    with pytest.raises(DataError, match=r"a\.csv matches .*, but is a directory"):
        expand(f"{tmp_path}/*.csv")
    assert expand(f"{tmp_path}/a.csv") == (f"{tmp_path}/a.csv/part-0.csv",)
