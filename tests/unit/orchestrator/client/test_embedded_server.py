"""What scripts leave in FLEETUNE_HOME to say that they live."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.client import embedded_server
from orchestrator.client.discovery import LocalServer, local_server
from orchestrator.client.embedded_server import ClientLock, MachineServer, NotStarted


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
        MachineServer(tmp_path / "home").url()


@pytest.mark.parametrize(
    "left", ["", "{}", "[]", '{"url": "http://h", "pid": "x"}', '{"url": "http://h", "pid": -1}', "\0"]
)
def test_a_record_that_is_none_is_no_server(tmp_path: Path, left: str) -> None:
    (tmp_path / "server.json").write_text(left)
    assert local_server(tmp_path) is None


def test_a_server_that_was_started_by_hand_is_not_replaced_by_an_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold the lock of the store, so that the server could not be started by hand again."""

    def write(port: int, pid: int, **more: bool) -> None:
        record = {"url": f"http://127.0.0.1:{port}", "pid": pid, **more}
        (tmp_path / "server.json").write_text(json.dumps(record))

    def started(home: Path, until_s: float) -> LocalServer:
        return LocalServer("http://127.0.0.1:9", 9, embedded=True)

    monkeypatch.setattr(embedded_server, "answers", lambda url, path: True)
    monkeypatch.setattr(embedded_server, "_started", started)
    gone = 2**30
    write(1, os.getpid())
    server = MachineServer(tmp_path)
    assert server.url() == "http://127.0.0.1:1"
    write(1, gone)
    assert server.url() == "http://127.0.0.1:1"
    (tmp_path / "server.json").unlink()  # as after Ctrl-C
    assert server.url() == "http://127.0.0.1:1"
    write(2, os.getpid(), embedded=True)
    assert server.url() == "http://127.0.0.1:2"
    write(2, gone, embedded=True)
    assert server.url() == "http://127.0.0.1:9"
