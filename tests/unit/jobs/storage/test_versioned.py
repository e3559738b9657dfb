"""A file with a version is read, is damaged, or was written by a newer release; nothing else is raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StorageError
from jobs.frozen import Frozen
from jobs.storage import files as storage
from jobs.storage.versioned import Damaged


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "a.json").write_bytes(content)
    return storage.read_versioned(str(tmp_path / "a.json"), 2, lambda raw: raw["value"])


def test_files_of_this_release_and_earlier_ones_are_read(tmp_path: Path) -> None:
    assert storage.read_versioned(str(tmp_path / "none.json"), 2) is None
    assert read(tmp_path, b'{"version": 2, "value": 3}') == 3
    assert read(tmp_path, b'{"value": 4}') == 4


@pytest.mark.parametrize(
    "content",
    [b"", b'{"version": 2, "val', b"[1]", b"7", b"\xff", b'{"version": "x"}', b'{"version": 1}', b"[" * 100_000],
)
def test_damage_is_a_storage_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Damaged, match=r"a\.json is damaged: "):
        read(tmp_path, content)


def test_a_newer_release_is_told_by_its_version_and_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"newer release \(version 3, this one reads 2\)") as raised:
        read(tmp_path, b'{"version": 3}')
    assert not isinstance(raised.value, Damaged)


def test_a_newer_release_is_told_by_a_key_that_this_one_does_not_know(tmp_path: Path) -> None:
    class Inner(Frozen):
        a: int

    class Value(Frozen):
        inner: Inner

    def read_value(content: str) -> Value:
        (tmp_path / "a.json").write_text(content)
        found: Value = storage.read_versioned(str(tmp_path / "a.json"), 2, Value.model_validate)
        return found

    with pytest.raises(StorageError, match=r"newer release \(it has inner\.b, which this one does not") as raised:
        read_value('{"inner": {"a": 1, "b": 2}}')
    assert not isinstance(raised.value, Damaged)
    with pytest.raises(Damaged, match=r"a\.json is damaged: "):
        read_value('{"inner": {"a": "?"}}')
