"""What file systems report about a file, by which one that was written again is recognised."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from jobs.storage.listing import version_of

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("reported", "version"),
    [
        ({"ETag": '"e"', "LastModified": NOW, "VersionId": "v"}, '"e"'),  # s3
        ({"etag": "e", "generation": "7", "mtime": NOW, "updated": "now"}, "e"),  # gcs
        ({"blob_id": "b", "xet_hash": "x", "lfs": None, "last_commit": None}, "b"),  # a repository of the hub
        ({"xet_hash": "x", "mtime": None}, "x"),  # a bucket of the hub
        ({"ETag": None, "mtime": 1.5}, "1.5"),
        ({"created": NOW}, str(NOW)),
        ({"size": 3, "type": "file"}, None),
    ],
)
def test_the_version_of_a_file_is_the_most_exact_fact_that_its_store_reports(
    reported: dict[str, Any], version: str | None
) -> None:
    assert version_of({"name": "a", "size": 3, **reported}) == version
