"""A webhook, to a server of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import with_environment
from jobs.webhook import TRIES, send


class Hook(HTTPServer):
    """Answers with these statuses, one after the other; the last one stays."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses, self.bodies = list(statuses), list[Any]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=sekret"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Hook)
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = server.statuses.pop(0) if len(server.statuses) > 1 else server.statuses[0]
        self.send_response(status)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"words\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hook(request: pytest.FixtureRequest) -> Iterator[Hook]:
    server = Hook(*request.param)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def sent(url: str) -> tuple[str | None, list[float]]:
    pauses: list[float] = []
    return send(url, '{"job": "x"}', pauses.append), pauses


@pytest.mark.parametrize("hook", [(204,)], indirect=True)
def test_the_body_is_posted_once(hook: Hook) -> None:
    assert sent(hook.url) == (None, [])
    assert hook.bodies == [{"job": "x"}]


@pytest.mark.parametrize("hook", [(503, 429, 200)], indirect=True)
def test_a_server_in_trouble_is_asked_again(hook: Hook) -> None:
    said, pauses = sent(hook.url)
    assert (said, len(pauses), len(hook.bodies)) == (None, TRIES - 1, TRIES)


@pytest.mark.parametrize("hook", [(500,)], indirect=True)
def test_it_gives_up_with_the_answer(hook: Hook) -> None:
    said, _ = sent(hook.url)
    assert said == "http://127.0.0.1 answers 500: words"
    assert len(hook.bodies) == TRIES


@pytest.mark.parametrize("hook", [(403,), (302,)], indirect=True)
def test_what_is_refused_is_not_sent_again(hook: Hook) -> None:
    said, pauses = sent(hook.url)
    assert "answers 403" in str(said) or "answers 302" in str(said)
    assert (pauses, len(hook.bodies)) == ([], 1)


def test_nobody_there_is_said_in_one_line_and_without_the_urls_secrets() -> None:
    environment = with_environment({"FLEETUNE_WEBHOOK_URL": "http://[::1/?token=sekret", "FLEETUNE_WEBHOOK_BODY": "{}"})
    command = [sys.executable, "-m", "jobs.webhook"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "token=sekret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    less = with_environment({"FLEETUNE_WEBHOOK_URL": ""})
    assert subprocess.run(command, env=less, capture_output=True, timeout=300, check=False).returncode == 2


def test_https_is_checked_with_the_certificates_of_all_other_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETUNE_CA_FILE", str(tmp_path / "none.pem"))
    said, pauses = sent("https://127.0.0.1:1/hook")
    assert said is not None and f"the CA certificates of {tmp_path}/none.pem cannot be read" in said and not pauses
