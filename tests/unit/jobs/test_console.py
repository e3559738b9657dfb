"""Redirected output: logs of a run grow from attempt to attempt, also where they are objects of a store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from jobs.console import redirected_output
from jobs.storage import files as storage

pytestmark = pytest.mark.usefixtures("own_protocols")


@pytest.fixture
def object_log() -> Iterator[str]:
    root = f"/{uuid.uuid4().hex}"
    yield f"memory:/{root}/logs/rank-0.log"
    if fsspec.filesystem("memory").exists(root):
        fsspec.filesystem("memory").rm(root, recursive=True)


@pytest.fixture(params=["path", "url"])
def log(request: pytest.FixtureRequest, tmp_path: Path, object_log: str) -> str:
    return object_log if request.param == "url" else str(tmp_path / "logs" / "rank-0.log")


def attempt(log: str, text: bytes) -> None:
    with redirected_output(log):
        os.write(1, text)


def fail(log: str) -> None:
    with redirected_output(log):
        os.write(2, b"before the error\n")
        raise ZeroDivisionError


def test_a_later_attempt_appends_to_the_log(log: str) -> None:
    attempt(log, b"first attempt\n")
    attempt(log, b"second attempt\n")
    assert storage.read_bytes(log) == b"first attempt\nsecond attempt\n"


def test_what_an_attempt_wrote_before_its_error_is_kept(log: str) -> None:
    attempt(log, b"first attempt\n")
    with pytest.raises(ZeroDivisionError):
        fail(log)
    assert storage.read_bytes(log) == b"first attempt\nbefore the error\n"


def test_a_very_long_log_at_a_url_keeps_its_last_lines(object_log: str) -> None:
    line = b"x" * ((1 << 20) - 1) + b"\n"
    storage.write_bytes(object_log, line * 65)
    attempt(object_log, b"the end\n")
    kept = storage.read_bytes(object_log)
    assert len(kept) == (64 << 20) + len(b"the end\n") and kept.endswith(b"x\nthe end\n")
