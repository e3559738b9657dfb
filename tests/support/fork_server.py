"""Forks Ray's workers from one process that has imported torch, transformers and DeepSpeed, to save their imports.

`running()` starts a server for one process of pytest, which imports them when the first worker asks.

Where `forked/sitecustomize.py` is on the PYTHONPATH of a Ray, a worker that Ray starts asks for a fork, waits for it,
and ends with its exit code. The forked worker gets the environment, directory, namespaces, limits and output of the
worker that asked, and imports this repository and Ray itself: Ray's library reads variables of the job when it is
loaded, and two forks of one generator of its random ids would give their objects the same ids. A worker that the fork
would not equal runs as Ray has started it: see `forked/fork_request.py`.
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
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.support.forked import fork_request
from tests.support.forked.fork_request import SERVER, read_by_imports

FORKED = str(pathlib.Path(__file__).with_name("forked"))
# Prefixes of the variables that libraries read while they are imported. If their values differ, a worker is not forked.
READ_BY_IMPORTS = (
    "HF_", "HUGGINGFACE", "TRANSFORMERS_", "TORCH", "PYTORCH", "DS_", "OMP_", "MKL_", "CUDA_", "TOKENIZERS", "LD_",
    "PYTHONHASH", "PYTHONOPT", "PYTHONWARN", "PYTHONHOME", "NUMEXPR", "OPENBLAS", "TZ", "LANG", "LC_",
)  # fmt: skip
# Imports of the test itself set these, and those of the server do: they say nothing about the worker.
SET_BY_IMPORTS = (
    "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "HF_XET_HIGH_PERFORMANCE=1", "DS_ACCELERATOR=cpu",
)  # fmt: skip
ALSO_IMPORTED = (
    "pandas", "pyarrow.dataset", "pydantic", "google.protobuf", "msgpack", "jsonschema", "uvloop", "fsspec", "colorful",
    "psutil", "click", "requests", "starlette.requests", "rich.console", "torch._dynamo",
    "transformers.integrations.deepspeed", "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
)  # fmt: skip
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
    """Forks workers and reports their exit codes. It uses no threads, because a forked process has only one."""

    def __init__(self, place: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(place)
        self._listener.listen(64)
        self._events = selectors.DefaultSelector()
        self._events.register(self._listener, selectors.EVENT_READ)
        self._events.register(0, selectors.EVENT_READ)
        self._askers: dict[int, socket.socket] = {}  # by the worker's process id
        self._workers: set[int] = set()  # process handles

    def worker(self) -> dict[str, Any] | None:
        """Serve requests. Returns the request in each forked process, and None in the server when its input ends."""
        while True:
            for key, _ in self._events.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is self._listener:
                    if request := self._fork():
                        return request
                elif isinstance(key.fileobj, int):
                    self._has_ended(key.data, key.fileobj)
                elif key.data in self._askers:  # Ray has ended the process that asked: end its worker
                    self._events.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self) -> dict[str, Any] | None:
        if "torch" not in sys.modules:
            import_what_workers_import()
        asker, _ = self._listener.accept()
        head, handles, _, _ = socket.recv_fds(asker, 8, 8)
        with asker.makefile("rb") as stream:
            request = json.loads(stream.read(int.from_bytes(head, "little")))
        pid = os.fork()
        if not pid:
            self._events.close()
            for one in (self._listener, asker, *self._askers.values()):
                one.close()
            for handle in self._workers:
                os.close(handle)
            return {**request, "handles": handles}
        for handle in handles:
            os.close(handle)
        with contextlib.suppress(OSError):
            asker.sendall(fork_request.FORKED)
        self._askers[pid] = asker
        self._events.register(asker, selectors.EVENT_READ, pid)
        self._workers.add(worker := os.pidfd_open(pid))
        self._events.register(worker, selectors.EVENT_READ, pid)
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


def import_what_workers_import() -> None:
    import torch

    from jobs.training.model.engine import import_deepspeed
    from jobs.training.model.load import import_model_classes

    import_deepspeed(torch.device("cpu"))
    import_model_classes()
    for name in ALSO_IMPORTED:
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.split(".")[0] in ("jobs", "cluster", "ray"):  # each worker imports them: they read its variables
            del sys.modules[name]
    gc.collect()
    gc.freeze()


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
