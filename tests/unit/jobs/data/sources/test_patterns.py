"""What patterns of the spec mean. The kinds of files are tested with the records in them."""

from __future__ import annotations

from pathlib import Path

import pytest

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
