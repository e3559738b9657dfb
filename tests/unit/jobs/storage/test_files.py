"""Files appear whole or not at all, at a path or a URL, and whatever goes wrong is a StorageError."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.errors import StorageError
from jobs.storage import files as storage
from jobs.storage import without_links

pytestmark = pytest.mark.usefixtures("own_protocols")


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param != "memory":
        yield str(tmp_path) if request.param == "local" else f"file://{tmp_path}"
        return
    yield "memory://storage"
    if fsspec.filesystem("memory").exists("/storage"):
        fsspec.filesystem("memory").rm("/storage", recursive=True)


def test_what_is_written_is_read(root: str) -> None:
    path = storage.join(root, "a", "b.bin")
    storage.write_bytes(path, b"one")
    storage.write_bytes(path, b"two")
    assert storage.read_bytes(path) == b"two"
    assert storage.exists(path) and storage.is_dir(storage.join(root, "a")) and not storage.is_dir(path)


@pytest.mark.parametrize("top", ["/", "file:///", "memory://"])
def test_the_top_of_a_storage_is_a_directory(top: str) -> None:
    assert storage.exists(top) and storage.is_dir(top)


def test_names_are_sorted_and_a_missing_directory_has_none(root: str) -> None:
    for name in ("b", "a", "c/d"):
        storage.write_bytes(storage.join(root, "dir", name), b"")
    assert storage.list_names(storage.join(root, "dir")) == ["a", "b", "c"]
    assert storage.list_names(storage.join(root, "nope")) == []


def test_missing_file_is_a_storage_error_that_names_it(root: str) -> None:
    path = storage.join(root, "nope")
    with pytest.raises(StorageError, match=f"cannot read {path}"):
        storage.read_bytes(path)
    with pytest.raises(StorageError, match=f"cannot read {path}"), storage.open_read(path):
        pass
    assert not storage.exists(path)


def test_open_file_can_be_searched_from_its_end(root: str) -> None:
    path = storage.join(root, "x")
    storage.write_bytes(path, b"0123456789")
    with storage.open_read(path) as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"789"


def test_finished_file_is_brought_to_its_place(root: str, tmp_path: Path) -> None:
    local = tmp_path / "made"
    local.write_bytes(b"content")
    storage.put_file(str(local), storage.join(root, "deep", "there"))
    assert storage.read_bytes(storage.join(root, "deep", "there")) == b"content"


def test_file_is_moved_into_a_folder_that_did_not_exist(root: str) -> None:
    source, target = storage.join(root, "a", "file"), storage.join(root, "b", "deep", "file")
    storage.write_bytes(source, b"new")
    storage.move_file(source, target)
    assert storage.read_bytes(target) == b"new" and not storage.exists(source)
    storage.write_bytes(source, b"newer")
    storage.move_file(source, target)
    assert storage.read_bytes(target) == b"newer", "it takes the place of the one there"
    with pytest.raises(StorageError, match=f"cannot move {source}"):
        storage.move_file(source, target)


def test_directory_is_fetched_with_its_folders(root: str, tmp_path: Path) -> None:
    for name in ("a", "sub/b"):
        storage.write_bytes(storage.join(root, "tree", name), name.encode())
    storage.fetch_dir(storage.join(root, "tree"), str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "sub" / "b").read_bytes() == b"sub/b" and (tmp_path / "copy" / "a").exists()


def test_removed_directory_is_gone_and_removing_none_is_fine(root: str) -> None:
    storage.write_bytes(storage.join(root, "dir", "a"), b"")
    storage.remove_dir(storage.join(root, "dir"))
    storage.remove_dir(storage.join(root, "dir"))
    assert not storage.exists(storage.join(root, "dir", "a"))


def _by_files(path: Path) -> None:
    storage.remove_dir(str(path))


def _without_links(path: Path) -> None:
    without_links.remove(str(path.parent), [path.name])


@pytest.mark.parametrize("remove", [_by_files, _without_links])
def test_directory_that_another_process_removes_too_is_gone(
    remove: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "sub/c", "sub/d"):
        storage.write_bytes(str(tmp_path / "dir" / name), b"")
    unlink = os.unlink

    def late(path: Any, **named: Any) -> None:
        unlink(path, **named)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr("os.unlink", late)
    remove(tmp_path / "dir")
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(str(tmp_path / "dir" / "a"), b"")

    def refuse(path: Any, **named: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("os.unlink", refuse)
    with pytest.raises(StorageError, match=r"cannot remove .*Permission denied"):
        storage.remove_dir(str(tmp_path / "dir"))


def test_probe_of_a_writable_place_leaves_no_file(root: str) -> None:
    storage.check_writable(storage.join(root, "runs"))
    assert storage.list_names(storage.join(root, "runs")) == []


def test_place_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError, match=r"is not writable: .*/file is not a directory\. Choose a directory or URL you own"
    ):
        storage.check_writable(str(tmp_path / "file" / "runs"))


def test_a_write_below_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mails.csv").touch()
    with pytest.raises(StorageError, match=r"cannot write .*: .*/mails\.csv is a file, not a directory"):
        storage.write_bytes(str(tmp_path / "mails.csv" / "config.json"), b"{}")


def test_failed_write_leaves_the_old_content_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(StorageError):
        storage.write_bytes(str(path), "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["x"]


def test_unknown_protocol_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="nosuch:// is not allowed"):
        storage.read_bytes("nosuch://bucket/key")
    with pytest.raises(StorageError):
        storage.exists("nosuch://bucket/key")


def test_urls_and_paths_are_told_apart() -> None:
    assert storage.is_url("s3://b/k") and storage.is_url("file:///x") and not storage.is_url("/x")
    assert storage.is_local("file:///x") and storage.is_local("x") and not storage.is_local("s3://b")
    assert storage.join("s3://b/k", "a", "b") == "s3://b/k/a/b" and storage.local_path("file:///x") == "/x"


def test_brackets_in_a_path_are_names_and_no_pattern(root: str, tmp_path: Path) -> None:
    one, two = storage.join(root, "exp[1]"), storage.join(root, "exp1")
    for folder in (one, two):
        storage.write_bytes(storage.join(folder, "a", "x"), folder.encode())
    target = tmp_path / "fetched"
    storage.fetch_dir(one, str(target))
    assert (target / "a" / "x").read_bytes() == one.encode()
    storage.move_file(storage.join(one, "a", "x"), storage.join(one, "b", "y[2]"))
    assert storage.read_bytes(storage.join(one, "b", "y[2]")) == one.encode()
    storage.remove_dir(one)
    assert not storage.exists(storage.join(one, "b", "y[2]")) and storage.exists(storage.join(two, "a", "x"))
    with pytest.raises(StorageError, match="no such file"):
        storage.fetch_dir(storage.join(root, "none"), str(target))
