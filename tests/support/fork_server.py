"""Forks Ray's workers from processes that have imported what workers import, to save their imports.

`running()` starts a server for one process of pytest. When the first worker asks, it imports torch, transformers and
DeepSpeed. For each job of a Ray it forks a parent, which imports Ray with the variables of that job and forks workers.

Where `forked/sitecustomize.py` is on the PYTHONPATH of a Ray, a worker that Ray starts asks for a fork, waits for it,
and ends with its exit code. The forked worker gets the environment, directory, namespaces, limits and output of the
worker that asked, and imports this repository itself. A worker that the fork would not equal runs as Ray has started
it: see `forked/fork_request.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.forked import fork_request
from tests.support.forked.fork_request import SERVER, read_by_imports

FORKED = str(pathlib.Path(__file__).with_name("forked"))
# Prefixes of the variables that libraries read while they are imported. If their values differ, a worker is not forked.
READ_BY_IMPORTS = (
    "HF_", "HUGGINGFACE", "TRANSFORMERS_", "TORCH", "PYTORCH", "DS_", "OMP_", "MKL_", "CUDA_", "TOKENIZERS", "LD_",
    "PYTHONHASH", "PYTHONOPT", "PYTHONWARN", "PYTHONHOME", "NUMEXPR", "OPENBLAS", "TZ", "LANG", "LC_",
)  # fmt: skip
# Imports of the test itself set these, so they say nothing about the worker.
SET_BY_IMPORTS = ("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR")
ALSO_IMPORTED = (
    "pandas", "pyarrow.dataset", "pydantic", "google.protobuf", "msgpack", "jsonschema", "uvloop", "fsspec", "colorful",
    "psutil", "click", "requests", "starlette.requests", "rich.console", "torch._dynamo",
    "transformers.integrations.deepspeed", "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
)  # fmt: skip
READ_BY_RAY = ("RAY_", "TUNE_", "TRAIN_", "GRPC_")  # prefixes of variables
RAY_MODULES = ("ray", "ray.data", "ray.train.torch", "ray.train.v2.api.data_parallel_trainer", "ray.tune")
MOST_IDS, MOST_THREADS = 2000, 1024  # that a worker draws in its main thread, and that draw some in it
# A worker's title and variables are written over the arguments and variables of the server, which need room for them.
ROOM_FOR_TITLES, ROOM_FOR_VARIABLES = "-" * 400, {"ROOM": "-" * 30_000}
CLONE_FLAGS = {"net": 0x40000000, "uts": 0x04000000, "mnt": 0x00020000}  # of setns(2)
LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Run the server in the background. Workers that start before it listens are not forked.

    Its socket is not in /tmp, because each host of the tests has a /tmp of its own.
    """
    with tempfile.TemporaryDirectory(prefix="ft-fork-", dir="/var/tmp") as folder:
        place = f"{folder}/socket"
        command = [sys.executable, "-m", "tests.support.fork_server", place, ROOM_FOR_TITLES]
        # `jobs.training.on_ray.fit` sets MALLOC_ARENA_MAX for its workers.
        environment = {**os.environ, **ROOM_FOR_VARIABLES, "MALLOC_ARENA_MAX": "1"}
        root = pathlib.Path(__file__).parents[2]
        server = subprocess.Popen(command, env=environment, cwd=root, stdin=subprocess.PIPE)
        os.environ[SERVER] = place
        try:
            yield
        finally:
            del os.environ[SERVER]
            server.communicate()


class ForkServer:
    """Forks a parent of workers for each job of a Ray, and passes requests on to it.

    Neither has threads while it forks, because a forked process has only one.
    """

    def __init__(self, place: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(place)
        self._listener.listen(64)
        self._parents: dict[str, socket.socket] = {}  # the ends of their sockets, by Ray's variables

    def worker(self) -> dict[str, Any] | None:
        """Serve requests until the standard input ends. Returns the request in a worker, None in other processes."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a parent that has ended
        while True:
            ready, _, _ = select.select([0, self._listener], [], [])
            if 0 in ready:
                return None
            if "torch" not in sys.modules:
                import_what_workers_import()
            asker, _ = self._listener.accept()
            head, handles, _, _ = socket.recv_fds(asker, 8, 8)
            with asker.makefile("rb") as stream:
                content = stream.read(int.from_bytes(head, "little"))
            variables = of_ray(json.loads(content)["environment"])
            key = json.dumps(variables, sort_keys=True)
            try:
                _send(self._parents[key], content, [asker.fileno(), *handles])
            except (KeyError, OSError):
                self._parents[key], end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if not os.fork():
                    for one in (self._listener, asker, *self._parents.values()):
                        one.close()
                    for handle in handles:
                        os.close(handle)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    import_ray(variables)
                    return Parent(end, int(variables["RAY_RAYLET_PID"])).worker()
                end.close()
                _send(self._parents[key], content, [asker.fileno(), *handles])
            asker.close()
            for handle in handles:
                os.close(handle)


class Parent:
    """A process that has imported Ray. It forks workers, and reports their exit codes."""

    def __init__(self, requests: socket.socket, raylet: int) -> None:
        """`raylet`: the process id of the only raylet whose workers it forks."""
        self._requests = requests
        self._events = selectors.DefaultSelector()
        self._events.register(requests, selectors.EVENT_READ)
        self._raylet = os.pidfd_open(raylet)
        self._events.register(self._raylet, selectors.EVENT_READ)
        self._askers: dict[int, socket.socket] = {}  # by the worker's process id
        self._workers: set[int] = set()  # process handles

    def worker(self) -> dict[str, Any] | None:
        """Fork until the raylet and all workers have ended. Returns the request in a worker, None in the parent."""
        raylet_lives = True
        while raylet_lives or self._askers:
            for key, _ in self._events.select():
                if key.fileobj is self._requests:
                    content, handles = _receive(self._requests)
                    if not content:
                        return None
                    if request := self._fork(content, handles):
                        return request
                elif key.fileobj == self._raylet:
                    self._events.unregister(self._raylet)
                    raylet_lives = False
                elif isinstance(key.fileobj, int):
                    self._has_ended(key.data, key.fileobj)
                elif key.data in self._askers:  # Ray has ended the process that asked: end its worker
                    self._events.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
        return None

    def _fork(self, content: bytes, handles: list[int]) -> dict[str, Any] | None:
        asker = socket.socket(fileno=handles.pop(0))
        pid = os.fork()
        if not pid:
            for one in (self._requests, self._events, asker, *self._askers.values()):
                one.close()
            for handle in (self._raylet, *self._workers):
                os.close(handle)
            return {**json.loads(content), "handles": handles}
        for handle in handles:
            os.close(handle)
        with contextlib.suppress(OSError):
            asker.sendall(fork_request.FORKED)
        self._askers[pid] = asker
        self._events.register(asker, selectors.EVENT_READ, pid)
        self._workers.add(worker := os.pidfd_open(pid))
        self._events.register(worker, selectors.EVENT_READ, pid)
        pass_over_ids()
        return None

    def _has_ended(self, pid: int, handle: int) -> None:
        self._events.unregister(handle)
        self._workers.discard(handle)
        os.close(handle)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(KeyError):  # the process that asked has ended before
            self._events.unregister(self._askers[pid])
        with contextlib.suppress(OSError), self._askers.pop(pid) as asker:
            asker.sendall(str(code).encode())


def _send(end: socket.socket, content: bytes, handles: list[int]) -> None:
    """Through a file, because a request may be longer than a packet."""
    with os.fdopen(os.memfd_create("request"), "r+b") as file:
        file.write(content)
        file.flush()
        socket.send_fds(end, [b"."], [file.fileno(), *handles])


def _receive(end: socket.socket) -> tuple[bytes, list[int]]:
    packet, handles, _, _ = socket.recv_fds(end, 1, 16)
    if not packet:
        return b"", []
    with os.fdopen(handles.pop(0), "rb") as file:
        file.seek(0)
        return file.read(), handles


def import_what_workers_import() -> None:
    import torch

    from jobs.training.model.engine import import_deepspeed
    from jobs.training.model.load import import_model_classes

    import_deepspeed(torch.device("cpu"))
    import_model_classes()
    for name in ALSO_IMPORTED:
        importlib.import_module(name)
    _forget("jobs", "cluster", "ray")
    gc.collect()
    gc.freeze()


def of_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of Ray. Its library reads some of them when it is loaded: of the worker's job, for one."""
    return {name: value for name, value in environment.items() if name.startswith(READ_BY_RAY)}


def import_ray(variables: Mapping[str, str]) -> None:
    """Import Ray with these variables."""
    for name in of_ray(os.environ):
        del os.environ[name]
    os.environ.update(variables)
    for name in RAY_MODULES:
        importlib.import_module(name)
    _forget("jobs", "cluster")
    gc.collect()
    gc.freeze()


def pass_over_ids() -> None:
    """Draw the random ids of Ray that the worker just forked may draw, so that the next one draws others.

    A fork copies Ray's generators, which no seed changes: one of the main thread, and one from which each new thread
    gets its own. Two workers with the same ids read each other's objects.
    """
    from ray._raylet import NodeID

    for _ in range(MOST_IDS):
        NodeID.from_random()
    for _ in range(MOST_THREADS):
        thread = threading.Thread(target=NodeID.from_random)
        thread.start()
        thread.join()


def _forget(*packages: str) -> None:
    """Each worker imports these itself: they read its variables, and a test may change them on the way."""
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            del sys.modules[name]


def become(request: dict[str, Any], path: list[str]) -> None:
    """Give a forked process what Ray gave to the process that asked. `path`: sys.path without a PYTHONPATH."""
    os.setpgid(0, 0)
    for name, handle in zip(request["entered"], request["handles"][3:], strict=True):
        if LIBC.setns(handle, CLONE_FLAGS[name]):
            raise OSError(ctypes.get_errno(), f"the namespace {name}")
    for stream in (0, 1, 2):
        os.dup2(request["handles"][stream], stream)
    for handle in request["handles"]:
        os.close(handle)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.nice(request["nice"] - os.nice(0))
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), limit)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    environment = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    _show(environment)
    sys.argv = request["words"]
    first = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [os.path.dirname(sys.argv[0]), *first, *(one for one in path if one not in first)]
    sys.path_importer_cache.clear()
    sys.modules["numpy"].random.seed()
    if FORKED in first:
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")  # it runs the one that it hides


def _show(environment: dict[str, str]) -> None:
    """Write the variables to the memory behind /proc/PID/environ, where tests look for their processes."""
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[47:49])
    content = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, content, min(len(content), end - start))


def main(place: str) -> None:
    path = [one for one in sys.path if one != FORKED]
    environment = read_by_imports(os.environ, READ_BY_IMPORTS, SET_BY_IMPORTS)
    server = ForkServer(place)
    facts = {
        "environment": environment, "read_by_imports": READ_BY_IMPORTS, "set_by_imports": SET_BY_IMPORTS,
        "namespaces": {one.name: os.readlink(one) for one in pathlib.Path("/proc/self/ns").iterdir()},
        "cgroup": pathlib.Path("/proc/self/cgroup").read_text(),
    }  # fmt: skip
    pathlib.Path(f"{place}.part").write_text(json.dumps(facts))
    os.rename(f"{place}.part", f"{place}.json")
    request = server.worker()
    if request is not None:
        become(request, path)
        runpy.run_path(request["words"][0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
