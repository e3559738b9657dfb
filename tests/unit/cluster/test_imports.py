"""Imports without collections, after which Python collects as before."""

from __future__ import annotations

import gc
import importlib
import pathlib
import threading
from collections.abc import Iterator

import pytest

from cluster.imports import quick_imports


@pytest.fixture(autouse=True)
def nothing_stays_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()
    assert gc.isenabled()


def test_nothing_is_collected_in_the_block_and_afterwards_it_is_as_before() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_collections_on() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        importlib.import_module("no_such_module_anywhere")
    assert gc.isenabled()


def test_what_was_imported_is_left_out_of_collections_and_what_comes_later_is_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_once.py").write_text("content = [[] for _ in range(1000)]")
    monkeypatch.syspath_prepend(tmp_path)
    with quick_imports():
        content = importlib.import_module("imported_once").content
    later: list[object] = []
    later.append(later)
    assert not any(one is content for one in gc.get_objects())
    assert any(one is later for one in gc.get_objects())


def test_who_has_switched_collections_off_keeps_them_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_blocks_of_two_threads_may_overlap_in_any_way(first: str) -> None:
    entered, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with quick_imports():
            entered.set()
            may_end.wait(10)

    thread = threading.Thread(target=other)
    if first == "outer":
        thread.start()
        entered.wait(10)
    with quick_imports():
        if first == "inner":
            thread.start()
            entered.wait(10)
            may_end.set()
            thread.join()
    may_end.set()
    thread.join()
    assert gc.isenabled()
