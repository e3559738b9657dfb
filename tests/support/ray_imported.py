"""Ray, imported before a fork, so that a forked worker is the one that would have imported it itself.

Two things of Ray belong to its import. Its library reads variables of the environment then: a worker is forked only
from a process that has imported Ray with the same values, and the two that differ from worker to worker are written
into the library. And Ray draws random ids then, and the first one seeds the generator of all later ones. A fork would
copy it, and two workers would give their objects the same ids. So these ids come from the system here.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

_MODULES = (
    "ray", "ray.data", "ray.train.torch", "ray.train.v2.api.data_parallel_trainer",
    "ray.dashboard.modules.job.job_supervisor",
)  # fmt: skip
_READ = ("RAY_", "TUNE_", "TRAIN_", "GRPC_")  # prefixes of the variables that Ray reads
# Those that it reads when it connects, not while it is imported: a trace of `getenv` and of `os.environ` has none.
_READ_LATER = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "RAY_NODE_ID", "RAY_USAGE_STATS_ENABLED")
# Those that differ from worker to worker, with what Ray's library finds in them: text that it has nowhere else, and at
# least as long as theirs.
_WRITTEN = {"RAY_JOB_ID": "3f9ac1d75e2b48f", "RAY_RAYLET_PID": "748159263159487"}


class _Head(ctypes.Structure):
    """What lies before the characters of a `std::string` in Ray's library, which is built for the older GNU library."""

    _fields_ = (("length", ctypes.c_size_t), ("capacity", ctypes.c_size_t), ("others", ctypes.c_int))

    def is_of(self, length: int) -> bool:
        return (self.length, self.capacity, self.others) == (length, length, 0)


def variables_of(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return those that Ray has to be imported with for a worker; None if this process is no worker of a job."""
    if any(not 0 < len(environment.get(name, "")) <= len(text) for name, text in _WRITTEN.items()):
        return None
    without = (*_READ_LATER, *_WRITTEN)
    return {name: value for name, value in environment.items() if name.startswith(_READ) and name not in without}


class ImportedRay:
    """Ray as it was imported in this process, with the variables of some workers."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Raises RuntimeError if the library has not read its variables as known here."""
        for name in [name for name in os.environ if name.startswith(_READ)]:
            del os.environ[name]
        os.environ.update({**variables, **_WRITTEN})
        before = set(os.environ)
        _import_without_ids()
        self._also_set = {name: value for name, value in os.environ.items() if name not in before}
        start, heap = _heap()
        self._texts = {name: start + _text_in(heap, text.encode()) for name, text in _WRITTEN.items()}

    def become(self, environment: Mapping[str, str]) -> None:
        """Give Ray's library the variables of this worker that differ from those of others."""
        for name, value in self._also_set.items():
            os.environ.setdefault(name, value)
        for name, address in self._texts.items():
            content = environment[name].encode()
            ctypes.memmove(address, content + b"\0", len(content) + 1)
            _Head.from_address(address - ctypes.sizeof(_Head)).length = len(content)


class _FromTheSystem:
    """Stands for the class of ids that Ray draws for each actor class when it is imported."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def from_random(self) -> Any:
        return self._kind(os.urandom(self._kind.size()))


def _import_without_ids() -> None:
    actor: Any = importlib.import_module("ray.actor")
    kind, actor.ActorClassID = actor.ActorClassID, _FromTheSystem(actor.ActorClassID)
    for name in _MODULES:
        importlib.import_module(name)
    actor.ActorClassID = kind


def _heap() -> tuple[int, bytes]:
    """Return where the memory begins that `malloc` gives out, and what is in it. It is without a gap."""
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    ends = [int(end, 16) for line in lines if line.endswith(" [heap]") for end in line.split()[0].split("-")]
    return min(ends), ctypes.string_at(min(ends), max(ends) - min(ends))


def _text_in(heap: bytes, text: bytes) -> int:
    """Return where the characters of the only `std::string` with this text are."""
    found, at, head = list[int](), ctypes.sizeof(_Head), ctypes.sizeof(_Head)
    while (at := heap.find(text + b"\0", at)) >= 0:
        if _Head.from_buffer_copy(heap, at - head).is_of(len(text)):
            found.append(at)
        at += 1
    if len(found) != 1:
        raise RuntimeError(f"Ray's library has a variable at {len(found)} places, not at one")
    return found[0]
