"""Stamps of files: equal as long as nobody writes them."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from cluster.errors import DataError
from jobs.data.sources.file_stamp import stamp, stamp_elsewhere
from tests.unit.jobs.data.sources.test_records import in_memory, write

pytestmark = pytest.mark.usefixtures("own_protocols")


def test_a_stamp_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "a")
    url = in_memory("x.jsonl", b"a")
    for number, file in enumerate((path, f"file://{path}", url)):
        before = stamp(file)
        assert before == stamp(file)
        with fsspec.open(file, "wb") as out:
            out.write(b"b")
        os.utime(path, ns=(1, number))  # else the same, where the clock is coarse
        assert stamp(file) != before
    before = stamp(path)
    os.replace(write(tmp_path / "y", "b"), path)
    os.utime(path, ns=(1, int(before[1])))
    assert stamp(path) != before
    with pytest.raises(DataError, match="none"):
        stamp(f"{tmp_path}/none")


def test_of_a_file_that_another_host_has_stamped_only_the_size_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "ab")
    here = stamp(path)
    assert stamp_elsewhere(path, ("2", "another time", "another inode")) == here
    assert stamp_elsewhere(path, ("3", *here[1:])) != here
