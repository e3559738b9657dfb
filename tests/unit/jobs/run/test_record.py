"""The outcome that a run's end leaves, also where its files are damaged."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cluster.errors import RunFailed
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.record import concluded
from jobs.storage import files as storage


@pytest.mark.parametrize("name", ["plan.json", "remedies.json"])
@pytest.mark.parametrize("content", [b'{"version": 99}', b"[]", b'{"version": 1}', b"{"])
def test_a_file_that_cannot_be_read_hides_no_troubles(tmp_path: Path, name: str, content: bytes) -> None:
    paths = JobPaths(str(tmp_path))

    def failed() -> Outcome:
        announce("remedy", "", remedy="hang", cause="rank 1 hung", action="it is killed", effect="")
        raise RunFailed("rank 1 has failed")

    storage.write_bytes(f"{paths.root}/{name}", content)
    with contextlib.closing(Announcer(paths, NoProgress())) as announce:
        outcome = concluded(paths, failed, announce)
    assert [one.cause for one in outcome.troubles] == ["rank 1 hung"] and read_outcome(paths) == outcome
