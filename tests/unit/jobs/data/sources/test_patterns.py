"""What patterns of the spec mean. The kinds of files are tested with the records in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.errors import DataError
from jobs.data.sources.patterns import expand
from tests.unit.jobs.data.sources.test_records import write


def test_a_pattern_that_matches_a_directory_is_refused_unless_its_files_match_too(tmp_path: Path) -> None:
    (tmp_path / "part-0").mkdir()
    one, two = write(tmp_path / "part-0" / "a.jsonl", "{}"), write(tmp_path / "part-1.jsonl", "{}")
    with pytest.raises(DataError, match=r"part-0 matches .*, but is a directory"):
        expand(f"{tmp_path}/part-*")
    assert expand(f"{tmp_path}/part-*/*") == (one,)
    assert expand(f"{tmp_path}/*.jsonl") == (two,)
    assert expand(f"{tmp_path}/**") == (one, two)


def test_a_policy_may_forbid_to_look_at_a_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 403 to a look at an unknown key if listing is allowed below a prefix only."""
    fs = MemoryFileSystem()
    fs.pipe("/policy/a.jsonl", b"{}\n")
    info = MemoryFileSystem.info

    def forbidding(self: MemoryFileSystem, path: str, **more: object) -> object:
        try:
            return info(self, path, **more)
        except FileNotFoundError:
            raise PermissionError("Forbidden") from None

    monkeypatch.setenv("FLEETUNE_PROTOCOLS", "memory")
    monkeypatch.setattr(MemoryFileSystem, "info", forbidding)
    monkeypatch.setattr(MemoryFileSystem, "isdir", lambda self, path: path.rstrip("/").endswith("policy"))
    assert expand("memory://policy/*.jsonl") == ("memory:///policy/a.jsonl",)
    assert expand("memory://policy") == ("memory:///policy/a.jsonl",)
    with pytest.raises(DataError, match="Forbidden"):
        expand("memory://policy/b.jsonl")
