"""What the server writes for programs of `ray job submit`, and what keeps it from that."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.ray.raylets import raylet_of_session
from cluster.ray.session_record import SessionRecord
from orchestrator.server.ray_updates import SessionRecordUpdates
from tests.support.processes import wait_for


@contextlib.contextmanager
def head_of(session: Path) -> Iterator[None]:
    """A process that looks like the raylet of a head."""
    words = ["/ray/raylet", "-c", "read line", f"--session_dir={session}", "--gcs-address=127.0.0.1:1", "--head"]
    with subprocess.Popen(words, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        wait_for(lambda: raylet_of_session(session.name), "the process has its command line")
        yield
        process.kill()


def test_a_session_directory_that_cannot_be_seen_is_a_hindrance_and_no_failure_of_the_pass(tmp_path: Path) -> None:
    said = list[str]()
    session = tmp_path / "session_in_a_container"
    updates = SessionRecordUpdates(lambda: session.name, SessionRecord("http://head:8400", "abc"), said.append)
    with head_of(session):
        updates()
        updates()
    assert len(said) == 1 and f"{session} cannot be seen from here (No such file or directory)" in said[0]
    assert "start at once" in said[0]
