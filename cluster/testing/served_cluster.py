"""A fake cluster in a separate process, which goes on when the process that uses it is killed.

Calls and answers are JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from cluster.backend import Launch, Phase, Submission
from cluster.capacity.inventory import Growth, Inventory, Node, NodeType
from cluster.errors import BackendUnreachable, Fenced, FleetuneError, LaunchRefused
from cluster.python_module import module_command
from cluster.testing.fake_backend import FakeBackend
from cluster.testing.fake_cluster import FakeCluster, Script
from cluster.testing.history import Run

_VALUES: Mapping[str, type[Any]] = {
    one.__name__: one for one in (Launch, Submission, Inventory, Growth, NodeType, Node, Run, Script)
}
_ERRORS: Mapping[str, type[Exception]] = {
    one.__name__: one for one in (BackendUnreachable, Fenced, LaunchRefused, KeyError, ValueError, TypeError)
}
ANSWER_TIMEOUT_S = 30.0
_COMES_UP_S = 30.0
_MOST_CONNECTIONS_WAITING = 128


def dump(value: Any) -> bytes:
    return json.dumps(_plain(value)).encode()


def load(message: bytes) -> Any:
    """Decode what `dump` made. Sequences become tuples."""
    return _whole(json.loads(message))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, "of": fields}
    if isinstance(value, Phase):
        return {"is": "Phase", "of": str(value)}
    if isinstance(value, bytes):
        return {"is": "bytes", "of": value.hex()}
    if isinstance(value, Mapping):
        return {"is": "map", "of": {name: _plain(one) for name, one in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_whole(one) for one in value)
    if not isinstance(value, dict):
        return value
    kind, content = value["is"], value["of"]
    if kind == "Phase":
        return Phase(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    fields = {name: _whole(one) for name, one in content.items()}
    return fields if kind == "map" else _VALUES[kind](**fields)


class ServedCluster:
    """A `FakeCluster` in another process. Each call makes a connection."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: the socket; at most 107 characters, the limit for Unix sockets."""
        self._path = os.fspath(path)

    def ask(self, call: str, *arguments: Any) -> Any:
        """Call a method of the cluster by its name.

        Raises:
            BackendUnreachable: no process answers at the socket, or the cluster simulates that it is unreachable.
        """
        try:
            with Client(self._path, "AF_UNIX") as connection:
                connection.send_bytes(dump((call, arguments)))
                if not connection.poll(ANSWER_TIMEOUT_S):
                    raise TimeoutError("timed out")
                answer = load(connection.recv_bytes())
        except (OSError, EOFError) as error:  # EOFError: half an answer, or none
            raise BackendUnreachable(f"no fake cluster answers at {self._path}: {error}") from error
        if "error" in answer:
            raise _ERRORS.get(answer["error"], FleetuneError)(answer["message"])
        return answer["answer"]


def serve(path: str, cluster: FakeCluster) -> None:
    """Answer at the socket until this process ends."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    listener = Listener(path, "AF_UNIX", backlog=_MOST_CONNECTIONS_WAITING)
    os.umask(mask)
    while True:
        threading.Thread(target=_answer, args=(listener.accept(), cluster), daemon=True).start()


def _answer(connection: Connection, cluster: FakeCluster) -> None:
    with connection, contextlib.suppress(OSError, EOFError):  # the caller was killed while it wrote or waited
        call = connection.recv_bytes()
        try:
            name, arguments = load(call)
            answer = dump({"answer": cluster.ask(name, *arguments)})
        except Exception as error:
            answer = dump({"error": type(error).__name__, "message": str(error)})
        connection.send_bytes(answer)


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[FakeBackend]:
    """Provide a backend on a cluster in a separate process, which ends with the context.

    Args:
        folder: directory for the socket, `folder / "cluster"`, which also `ServedCluster` can use.
        options: options of `python -m cluster.testing serve`.
    """
    path = folder / "cluster"
    command = module_command("cluster.testing", "serve", "--socket", str(path), *options)
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
