"""A fake cluster in a separate process, which goes on when the process that uses it is killed."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import BackendUnreachable
from cluster.testing.fake_backend import FakeBackend
from cluster.testing.fake_cluster import FakeCluster
from cluster.testing.messages import dump, dump_error, error_of, load

ANSWER_TIMEOUT_S = 30.0
_COMES_UP_S = 30.0
_MOST_CONNECTIONS_WAITING = 128


class ServedCluster:
    """A `FakeCluster` in another process. Each call makes a connection, sends one line and reads one line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: the socket; at most 107 characters, the limit for Unix sockets."""
        self._path = os.fspath(path)

    def ask(self, call: str, *arguments: Any) -> Any:
        """Call a method of the cluster by its name.

        Raises:
            BackendUnreachable: no process answers at the socket, or the cluster simulates that it is unreachable.
        """
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_TIMEOUT_S)
                connection.connect(self._path)
                connection.sendall(dump((call, arguments)))
                with connection.makefile("rb") as file:
                    answer = load(file.readline())
        except (OSError, ValueError) as error:  # ValueError: half an answer
            raise BackendUnreachable(f"no fake cluster answers at {self._path}: {error}") from error
        if "error" in answer:
            raise error_of(answer)
        return answer["answer"]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            return  # the caller was killed while it wrote the request
        try:
            call, arguments = load(line)
            answer = dump({"answer": self.server.cluster.ask(call, *arguments)})
        except Exception as error:
            answer = dump_error(error)
        with contextlib.suppress(OSError):  # the caller was killed while it waited
            self.wfile.write(answer)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS_WAITING

    def __init__(self, path: str, cluster: FakeCluster) -> None:
        self.cluster = cluster
        mask = os.umask(0o177)
        try:
            super().__init__(path, _Handler)
        finally:
            os.umask(mask)


def serve(path: str, cluster: FakeCluster) -> None:
    """Answer at the socket until this process ends."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with _Server(path, cluster) as server:
        server.serve_forever()


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[FakeBackend]:
    """Provide a backend on a cluster in a separate process, which ends with the context.

    Args:
        folder: directory for the socket, `folder / "cluster"`, which also `ServedCluster` can use.
        options: options of `python -m cluster.testing serve`.
    """
    path = folder / "cluster"
    command = [sys.executable, "-m", "cluster.testing", "serve", "--socket", str(path), *options]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL)
    try:
        backend = FakeBackend(ServedCluster(path))
        _wait_until_up(backend, process)
        yield backend
    finally:
        process.kill()
        process.wait()


def _wait_until_up(backend: FakeBackend, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _COMES_UP_S
    while True:
        try:
            backend.now()
            return
        except BackendUnreachable:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
