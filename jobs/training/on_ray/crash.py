"""Classifies workers that ended without reporting an error, from Ray's exceptions. Pure functions.

Ray raises the same error for a process that the kernel killed for memory, that crashed, or that a person killed. Only
the node knows more (see `jobs.training.vitals`). Ray's texts are parsed; a fact that is not found in them is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cluster.errors import StorageError
from jobs.training.faults import first_line
from jobs.training.vitals import DeadRanks


class How(StrEnum):
    MEMORY = "memory"  # killed for memory, by Ray or by the kernel
    DIED = "died"  # killed by something else, or crashed
    NODE = "node"  # its node failed
    LEFT = "left"  # it lost its connections to the other workers
    NO_ROOM = "no-room"  # the workers have not started, because other programs have taken the slots


@dataclass(frozen=True)
class Crash:
    """The end of a worker that reported no error.

    Attributes:
        what: a verb phrase that follows the name of the process in a message.
        rank, pid, host: identify the process whose error says most.
        node: Ray's id of the node.
    """

    how: How
    what: str
    rank: int | None = None
    pid: int | None = None
    node: str | None = None
    host: str | None = None

    @property
    def who(self) -> str:
        who = f"a process of this run (pid {self.pid})" if self.pid is not None else "a process of this run"
        who = f"rank {self.rank}" if self.rank is not None else who
        return f"{who} on node {self.host or self.node}" if self.host or self.node else who

    def __str__(self) -> str:
        return f"{self.who} {self.what}"


_RANK = re.compile(r"\bworld_rank=(\d+)")
_PID = re.compile(r"\bpid[=:] ?(\d+)")
_NODE = re.compile(r"\bnode_id='(\w+)'|\(IP: [^,)]+, ID: (\w+)\)|Node ID: (\w+)")
_HOST = re.compile(r"\bhostname='([^']+)'|\(IP: ([^,)]+)|\tip: (\S+)")
_USE = re.compile(r"was ([\d.]+)GB used / ([\d.]+)GB limit")
_KILLED = re.compile(r"Selected to kill: \(.*?task name=RayTrainWorker\..*?pid=(\d+), actual memory used=([\d.]+)GB")


def crashes_of(error: BaseException) -> list[Crash]:
    """List the lost workers that an error of `DriverTrainer.fit` reports; empty if no worker was lost."""
    from ray.exceptions import RayError, RayTaskError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

    if isinstance(error, WorkerGroupError):
        return [_of_worker(rank, failure) for rank, failure in sorted(error.worker_failures.items())]
    cause: BaseException = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return [Crash(How.NO_ROOM, "found no room")]
    if isinstance(cause, WorkerGroupStartupFailedError):
        return [Crash(How.DIED, "died while the workers were starting")]
    if isinstance(cause, RayTaskError):  # raised while the workers joined their process group
        return [replace(_of_ray(cause, str(cause)), what=f"could not join the others ({first_line(cause.cause)})")]
    return [_of_ray(cause, str(cause))] if isinstance(cause, RayError) else []


def _of_worker(rank: int, failure: Any) -> Crash:
    """Classify the failure of one rank. An exception of the training function is not one of Ray's classes."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError, WorkerHealthCheckFailedError

    if isinstance(failure, WorkerHealthCheckFailedError):
        return replace(_of_ray(failure.health_check_failure, str(failure)), rank=rank)
    if isinstance(failure, RayError):
        return replace(_of_ray(failure, str(failure)), rank=rank)
    if isinstance(failure, RayTrainError):
        return Crash(How.DIED, "stopped answering", rank)
    if isinstance(failure, StorageError):
        return Crash(How.LEFT, f"could not use the storage ({first_line(failure)})", rank)
    return Crash(How.LEFT, f"lost its connection to the others ({first_line(failure)})", rank)


def _of_ray(error: BaseException, text: str) -> Crash:
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    found = Crash(How.DIED, "was killed or crashed", _number(_RANK, text), _number(_PID, text), _word(_NODE, text))
    found = replace(found, host=_word(_HOST, text))
    if isinstance(error, OutOfMemoryError):
        return _killed_by_ray(found, text)
    if isinstance(error, NodeDiedError) or "node has died" in text or "its node" in text:
        return replace(found, how=How.NODE, what="is gone with its node")
    return found


def _killed_by_ray(found: Crash, text: str) -> Crash:
    """Name the worker that held most memory, because Ray lists all processes that it killed."""
    killed = [(float(held), int(pid)) for pid, held in _KILLED.findall(text)]
    use, held = _USE.search(text), ""
    if killed:
        most, pid = max(killed)
        found = replace(found, rank=found.rank if pid == found.pid else None, pid=pid)
        held = f"; it held {most:.1f} GiB itself"
    full = f" when the node had {float(use[1]):.1f} of {float(use[2]):.1f} GiB in use" if use else ""
    return replace(found, how=How.MEMORY, what=f"was killed for memory by Ray{full}{held}")


def examined(crash: Crash, dead: DeadRanks) -> Crash:
    """Add to a crash what its node knows about the process."""
    vital = dead.of(crash.rank, crash.pid)
    if vital is None:
        return crash
    crash = replace(crash, rank=vital.rank, pid=vital.pid)
    if crash.how is not How.DIED or not dead.killed_for_memory(vital):
        return crash
    memory = dead.memory
    whose = "limit of its container" if memory.contained else "memory of the machine"
    limit = f"; the {whose} is {_gigabytes(memory.limit_bytes)}" if memory.limit_bytes else ""
    held = f"it held {_gigabytes(vital.resident_bytes)} a few seconds before"
    return replace(crash, how=How.MEMORY, what=f"was killed for memory by the kernel: {held}{limit}")


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = _word(pattern, text)
    return None if found is None else int(found)


def _word(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else next(group for group in found.groups() if group is not None)


def _gigabytes(number: float) -> str:
    """Format bytes as `10.6 GiB`."""
    return f"{number / 2**30:.1f} GiB"
