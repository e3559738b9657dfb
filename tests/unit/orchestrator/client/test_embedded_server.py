"""What scripts leave in FLEETUNE_HOME to say that they live."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.client.discovery import local_server
from orchestrator.client.embedded_server import ClientLock, NotStarted, embedded_url


def locks(home: Path) -> set[str]:
    return {path.stem for path in (home / "clients").glob("*.lock")}


def test_a_script_takes_its_lock_away(tmp_path: Path) -> None:
    one, other = ClientLock(tmp_path), ClientLock(tmp_path)
    assert locks(tmp_path) == {one.client, other.client}
    one.end()
    one.end()
    assert locks(tmp_path) == {other.client}
    other.end()


def test_a_home_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(NotStarted, match="Set FLEETUNE_HOME"):
        ClientLock(tmp_path / "home")
    with pytest.raises(NotStarted, match="Set FLEETUNE_HOME"):
        embedded_url(tmp_path / "home")


@pytest.mark.parametrize(
    "left", ["", "{}", "[]", '{"url": "http://h", "pid": "x"}', '{"url": "http://h", "pid": -1}', "\0"]
)
def test_a_record_that_is_none_is_no_server(tmp_path: Path, left: str) -> None:
    (tmp_path / "server.json").write_text(left)
    assert local_server(tmp_path) is None
