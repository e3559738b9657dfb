"""Without tokens a server is its user's alone, on a machine that many share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.http.peer import user_of
from tests.support.server import Server, server

NOBODY = 65534
ASK = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"GET /v1/me HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
print(connection.makefile("rb").read().decode())
"""

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server")) as found:
        yield found


def asked(queue: Server, user: int) -> str:
    # Isolated, from `/`: this user may read nothing of the test's.
    command = [sys.executable if user == os.getuid() else "/usr/bin/env", *([] if user == os.getuid() else ["python3"])]
    return subprocess.run(
        [*command, "-I", "-S", "-c", ASK, str(queue.port)],
        user=user,
        cwd="/",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_server_s_own_user_is_let_in(queue: Server) -> None:
    with queue.client() as client:
        assert client.get("/v1/me").json()["role"] == "admin"


@as_root
def test_another_user_of_the_machine_is_not(queue: Server) -> None:
    if subprocess.run(["/usr/bin/env", "python3", "-c", ""], env={"PATH": "/usr/local/bin:/usr/bin:/bin"}).returncode:
        pytest.skip("there is no python3 that another user may run")
    assert "200 OK" in asked(queue, os.getuid())
    answer = asked(queue, NOBODY)
    assert "403 Forbidden" in answer and "fleetune tokens add" in answer


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_an_end_is_somebody_s_only_while_it_is_open(address: str, tmp_path: Path) -> None:
    family = socket.AF_INET if address == "127.0.0.1" else socket.AF_INET6
    try:
        listener = socket.create_server(
            ("127.0.0.1" if "." in address else address, 0), family=family if "." not in address else socket.AF_INET
        )
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = listener.getsockname()[1]
    with listener, socket.socket(family) as client:
        client.connect((address, port))
        accepted, theirs = listener.accept()
        with accepted:
            mine = listener.getsockname()[:2]
            assert user_of(theirs[:2], mine) == os.getuid()
            assert user_of((theirs[0], 1), mine) is None
            client.close()
            assert user_of(theirs[:2], mine) is None
